"""A mask that cannot be pickled is an error in the worker that names it, not a training loop that waits for ever."""

import functools
import pickle
import threading

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.core import pickling
from tests.blocks.random_masks import differing

L = 16


def at_the_top(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def reach(n, b, h, q_idx, kv_idx):
    return q_idx - kv_idx < n


def local():
    def inside(b, h, q_idx, kv_idx):
        return q_idx >= kv_idx

    return inside


def local_class():
    @loom.masks.mask_dataclass
    class Inside(loom.Mask):
        """A mask whose class nobody finds."""

        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx >= kv_idx

    return Inside()


@loom.masks.mask_dataclass
class Holding(loom.Mask):
    """A mask that holds what it does not need."""

    held: object

    def __call__(self, b, h, q_idx, kv_idx):
        return q_idx >= kv_idx


def build(mask):
    return loom.block_mask(mask, L, L, device="cpu")


# what a worker makes, and the words of the error
BUILT = {
    "a lambda": (lambda: build(lambda b, h, i, j: i >= j), "<lambda>"),
    "a local function": (lambda: build(local()), "local.<locals>.inside"),
    "torch's signature": (lambda: loom.create_block_mask(local(), 1, 1, L, L, "cpu"), "local.<locals>.inside"),
    "as_mask": (lambda: build(loom.as_mask(local())), "local.<locals>.inside"),
    "and": (lambda: build(loom.causal & local()), "local.<locals>.inside"),
    "per head": (lambda: build(loom.masks.per_head([loom.causal, local()])), "local.<locals>.inside"),
    "shifted": (lambda: loom.block_mask(local(), L, L, q_offset=3, device="cpu"), "local.<locals>.inside"),
    "partial": (lambda: build(functools.partial(lambda n, b, h, i, j: i - j < n, 3)), "<lambda>"),
    "a local class": (lambda: build(local_class()), "the class local_class.<locals>.Inside"),
    "a lock": (lambda: build(Holding(threading.Lock())), "_thread.lock"),
    "a gradient": (lambda: build(Holding(torch.ones(3, requires_grad=True) * 2)), "detach it"),
}
SENT = {
    "a mask": (lambda: loom.as_mask(local()), "local.<locals>.inside"),
    "in a dict": (lambda: {"masks": [loom.causal & local()]}, "local.<locals>.inside"),
    "a local class": (lambda: (local_class(), 3), "the class local_class.<locals>.Inside"),
    "a score mod": (lambda: loom.scores.compose(loom.scores.softcap(30), lambda score, b, h, i, j: score), "<lambda>"),
    "torch's block mask": (lambda: {"mask": torch_create_block_mask(local(), 1, 1, L, L, "cpu")}, "local.<locals>.inside"),
}  # fmt: skip
FINE = {
    "a function": lambda: build(at_the_top),
    "a partial": lambda: build(functools.partial(reach, 3)),
    "a value": lambda: build(loom.causal & loom.lengths(torch.tensor([5, 9]))),
    "a mask of functions": lambda: loom.causal & at_the_top,
    "a table of a lambda": lambda: (loom.causal & (lambda b, h, i, j: i - j < 3)).dense(L, L),
    "attention with a lambda": lambda: loom.attend(*torch.ones(3, 1, 1, L, 4), lambda b, h, i, j: i >= j),
    "a leaf": lambda: Holding(torch.ones(3, requires_grad=True)),
}


class Makes(torch.utils.data.Dataset):
    """Rows made by a name, in `__getitem__` or by the collate function."""

    def __init__(self, name: str, cases: str) -> None:
        self.name, self.cases = name, cases

    def __len__(self):
        return 2

    def __getitem__(self, row):
        return self.make() if self.cases != "collated" else row

    def collate(self, rows):
        return rows[0] if self.cases != "collated" else BUILT[self.name][0]()

    def make(self):
        if self.cases == "fine":
            return FINE[self.name]()
        return {"built": BUILT, "sent": SENT}[self.cases][self.name][0]()


def loaded(name, cases, start):
    rows = Makes(name, cases)
    return list(torch.utils.data.DataLoader(rows, 1, num_workers=1, collate_fn=rows.collate, timeout=120,
                                            multiprocessing_context=start))  # fmt: skip


def check_refused(name, cases, start="fork"):
    words = (SENT if cases == "sent" else BUILT)[name][1]
    with pytest.raises(TypeError) as error:
        loaded(name, cases, start)
    said = str(error.value)
    assert "by pickle, and" in said and words in said and "maskloom.masks.mask_dataclass" in said
    assert ("DataLoader worker process 0" in said) == (cases != "sent")


@pytest.mark.parametrize("name", BUILT)
def test_a_block_mask_that_cannot_be_sent_is_an_error_in_the_worker(name):
    check_refused(name, "built")


@pytest.mark.parametrize("name", ["a lambda", "torch's signature", "and"])
def test_so_it_is_in_the_collate_function(name):
    check_refused(name, "collated")


@pytest.mark.parametrize("name", SENT)
def test_what_is_only_sent_is_an_error_where_it_arrives(name):
    check_refused(name, "sent")


@pytest.mark.parametrize("name", FINE)
def test_all_else_arrives(name):
    first, second = loaded(name, "fine", "fork")
    assert type(first) is type(second) is type(FINE[name]())
    if isinstance(first, type(build(loom.causal))):
        assert differing(first, FINE[name]()) == []


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_however_workers_start(start):
    check_refused("a local function", "built", start)


class Shared(torch.utils.data.Dataset):
    """One block mask for all rows, built before the workers start."""

    def __init__(self) -> None:
        self.blocks = build(local())

    def __len__(self):
        return 2

    def __getitem__(self, row):
        return {"row": row, "blocks": self.blocks}


def first(rows):
    return rows[0]


def test_a_block_mask_of_the_dataset_is_an_error_where_it_arrives():
    loader = torch.utils.data.DataLoader(
        Shared(), num_workers=1, collate_fn=first, multiprocessing_context="fork", timeout=120
    )
    with pytest.raises(TypeError, match=r"local\.<locals>\.inside"):
        list(loader)


def test_nothing_is_refused_outside_of_workers():
    blocks = build(local())
    assert blocks.mask_mod(*torch.zeros(4, dtype=torch.long)).item() is True
    with pytest.raises((pickle.PicklingError, AttributeError), match="local"):
        pickle.dumps(loom.as_mask(local()))
    assert pickle.loads(pickle.dumps(loom.causal & at_the_top)) == loom.causal & at_the_top


def test_large_arrays_and_tensors_are_not_copied_to_look(monkeypatch):
    written = []
    monkeypatch.setattr(pickling._Nowhere, "write", lambda self, data: written.append(len(bytes(data))))
    table = torch.zeros(1000, 1000)
    assert pickling.why_not_pickled(Holding((table, table.numpy()))) is None
    assert sum(written) < 2000 and not table.is_shared()
