"""A new mask is run once on scalars, whatever is made of it: counted by calls of its ``__call__``."""

import itertools

import pytest
import torch

import maskloom as loom

B, H, L, D = 2, 3, 64, 16
RUNS: list[int] = []
NUMBERS = itertools.count(100)


@loom.masks.mask_dataclass
class Mine(loom.Mask):
    """Lengths and a window, of a new structure each time: its number is part of that."""

    lens: torch.Tensor
    back: int

    def __call__(self, b, h, q_idx, kv_idx):
        RUNS.append(1)
        return (kv_idx < self.lens[b]) & (q_idx - kv_idx < self.back)

    def __repr__(self):
        return "Mine()"


def new():
    return Mine(torch.tensor([40, 64]), next(NUMBERS))


def inputs(q_len=L):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, length, D, generator=generator) for length in (q_len, L, L)]


FIRST = {
    "block_mask": lambda mask: loom.block_mask(mask, L, L),
    "create_block_mask": lambda mask: loom.create_block_mask(mask, B, None, L, L, device="cpu"),
    "attend": lambda mask: loom.attend(*inputs(), mask),
    "attend with a ready BlockMask": lambda mask: loom.attend(*inputs(), loom.block_mask(mask, L, L)),
    "attend from a position on": lambda mask: loom.attend(*inputs(3), mask, q_offset=4),
    "joined": lambda mask: loom.attend(*inputs(), loom.causal & mask | loom.sinks(2)),
    "explain": lambda mask: loom.explain(*inputs(), mask),
    "reference": lambda mask: loom.reference(*inputs(), mask),
    "tiles": lambda mask: loom.blocks.explain_block_mask(mask, L, L),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_new_mask_is_run_once(name):
    RUNS.clear()
    FIRST[name](new())
    assert len(RUNS) == 1


def test_a_mask_of_the_same_structure_is_not_run():
    number = next(NUMBERS)
    loom.attend(*inputs(), Mine(torch.tensor([40, 64]), number))
    RUNS.clear()
    mask = Mine(torch.tensor([7, 3]), number)
    out = loom.attend(*inputs(), mask)
    assert not RUNS
    torch.testing.assert_close(out, loom.reference(*inputs(), mask.dense(L, L))[0])


def test_many_positions_from_one_mask():
    mask = new()
    RUNS.clear()
    places = (1, 5, 2, 60, 61)
    outs = [loom.attend(*inputs(3), mask, q_offset=at) for at in places]
    assert len(RUNS) == 1
    for at, out in zip(places, outs, strict=True):
        torch.testing.assert_close(out, loom.reference(*inputs(3), at_position(mask, at))[0])
    with pytest.raises(ValueError, match="the mask reads a table with 64 positions, and there are 65 queries"):
        whole = loom.documents(torch.zeros(L, dtype=torch.int64))
        for at in (60, 61, 62):
            loom.attend(*inputs(3), whole, q_offset=at)


def at_position(mask, at):
    return loom.masks.shifted(mask, q_offset=at).dense(3, L, batch=B, heads=1)
