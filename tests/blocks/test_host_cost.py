"""What a block mask of a new mask of a known kind costs the host: calls of Python functions, and operations of torch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import maskloom as loom
from maskloom.blocks.replay import cached, kinds, recorder
from maskloom.core import captures
from maskloom.core.block_masks import TABLES
from maskloom.core.cache import LRU
from tests.attention.test_host_cost import count_calls

L, B = 650, 3
LENS = torch.tensor([601, 5, 333])
PADS = torch.arange(L) >= LENS[:, None]
ENDS = torch.tensor([0, 211, 402, L])

MASKS = {
    "lengths": lambda: loom.causal & loom.lengths(LENS),
    "padding": lambda: loom.causal & loom.padding(PADS),
    "documents": lambda: loom.causal & loom.documents(offsets=ENDS, length=L),
}


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """Nothing is known of any kind; torch runs the operations, as on a GPU."""
    monkeypatch.setattr(kinds, "_kinds", LRU(256))
    monkeypatch.setattr(cached, "_plans", LRU(256))
    monkeypatch.setattr(recorder, "on_arrays", lambda calls, values: None)


def repeated(name, exact):
    """A block mask of a new mask, of whose kind two were built before."""

    def build():
        return loom.block_mask(MASKS[name](), L, L, exact=exact)

    for _ in range(3):
        build()
    return build


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch: all operations but views, and those that only make room."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in NO_LAUNCHES:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


NO_LAUNCHES = {"as_strided", "view", "expand", "detach", "lift_fresh", "slice", "select", "unsqueeze", "alias", "empty"}


def launches(kind, tensors):
    """The operations of the list that decides tiles of a kind of mask."""
    with Launches() as found:
        kind.states.listed(tensors)
    return found.names


MOST_CALLS = {"lengths": 175, "padding": 175, "documents": 200}  # 331 to 342 where arguments and masks were walked
MOST_LAUNCHES = {
    ("lengths", False): 6, ("lengths", True): 15, ("padding", False): 14, ("padding", True): 26,
    ("documents", False): 18, ("documents", True): 29,
}  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_a_later_block_mask_is_few_calls_and_few_launches(name, exact):
    build = repeated(name, exact)
    assert count_calls(build) <= MOST_CALLS[name]
    (kind,) = [kind for kind in kinds._kinds.entries().values() if not isinstance(kind, str)]
    found = launches(kind, captures.tensors(MASKS[name]()))
    assert len(found) <= MOST_LAUNCHES[name, exact], found


@pytest.mark.parametrize("name", MASKS)
def test_a_later_mask_is_not_walked(name, monkeypatch):
    build = repeated(name, True)
    monkeypatch.setattr(captures, "_walked", lambda held: pytest.fail(f"{held!r} was walked"))
    blocks = build()
    assert captures.tensors(blocks.mask_mod)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("block", [128, 3])
@pytest.mark.parametrize("name", MASKS)
def test_a_kind_is_recorded_once(name, exact, block, monkeypatch):
    """Also one of many tiles, whose list holds more than a quarter of a MiB."""
    monkeypatch.setattr(cached, "record_replay", lambda *_, **__: pytest.fail("tiles were recorded twice"))
    for _ in range(3):
        loom.block_mask(MASKS[name](), L, L, exact=exact, block_size=block)


def test_hundreds_of_lengths_are_recorded_once(monkeypatch):
    monkeypatch.setattr(kinds, "_kinds", kinds.kinds_cache())
    recorded, kind_of = [], kinds.kind_of
    monkeypatch.setattr(kinds, "kind_of", lambda *given: recorded.append(1) or kind_of(*given))
    lengths = range(101, 501)
    for _ in range(4):
        for length in lengths:
            loom.block_mask(loom.causal & loom.lengths(torch.tensor([length // 2, length])), length, length)
    assert len(recorded) == len(lengths)


def test_the_bytes_of_kinds_are_bounded(monkeypatch):
    monkeypatch.setattr(kinds, "_kinds", kinds.kinds_cache(most_bytes=1 << 18))
    for length in range(L - 5, L):
        for _ in range(3):
            loom.block_mask(loom.causal & loom.lengths(LENS[:1] - 100), length, length, block_size=2)
    known = [kind for kind in kinds._kinds.entries().values() if not isinstance(kind, str)]
    assert len(known) == 1 and known[0].nbytes > 1 << 18


@pytest.mark.parametrize("length", [(41, 97), (150, 150), (650, 650)])
@pytest.mark.parametrize("name", ["lengths", "overlap", "documents"])
def test_tables_of_a_kind_are_those_of_each_mask(name, length):
    """Also where elements must be looked at: intervals leave tiles open, which are decided by the mask's own tensors."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        lens = torch.randint(1, min(length), (B,), generator=generator)
        mask = {
            "lengths": lambda lens=lens: loom.causal & loom.lengths(lens),
            "overlap": lambda lens=lens: (
                loom.key_padding(torch.arange(length[1]) % 7 + lens[:, None] > 5)
                & (loom.window(back=3) | loom.sinks(2))
            ),
            "documents": lambda lens=lens: loom.documents((torch.arange(max(length))[None] > lens[:, None]).long()),
        }[name]()
        ours = loom.block_mask(mask, *length, block_size=16)
        anew = loom.create_block_mask(mask, B, None, *length, BLOCK_SIZE=16)
        for table in TABLES:
            assert torch.equal(getattr(ours, table), getattr(anew, table)), table
