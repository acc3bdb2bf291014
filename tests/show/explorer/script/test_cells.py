"""Counting in cells when operands are switched: cells.js and reader.js against Python."""

import json

import pytest
import torch

import maskloom as loom
from maskloom.blocks.tile_states import tile_states
from tests.show.explorer.engine import engine
from tests.show.explorer.reading import numbers, unpack_all, unpacked

MASK = loom.causal & loom.window(back=90) | loom.sinks(2) & ~loom.lengths([700, 300])

_READ = """
/** A reader of a page's data, whose stored arrays are not compressed. */
function readerOf(data) {
  const read = (one) => numbersIn(one, fromBase64(one.text));
  const grids = ({ numbers, count, which }) => ({ which, grids: parted(read(numbers), count) });
  const model = Object.assign(new Model(data), {
    machine: new Machine(data.code, data.tables.map(read).map(tableOf)),
    shares: grids(data.cells.shares),
    states: data.cells.states.map(grids),
    tiles: null,
  });
  return new Reader(model);
}
"""


def told(mask, off, row=0, **options):
    """The cells, and the states of tiles, that the page finds with some operands off."""
    data = unpack_all(json.loads(loom.show.explorer.parts(mask, 700, **options).data))
    engine().eval(_READ.replace("function readerOf", "globalThis.readerOf = function"))
    engine().eval(f"globalThis.reader = readerOf({json.dumps(data)}); reader.row = {row}; reader.off = new Set({off});")
    engine().eval("reader.changed(); reader.cells.count(() => false);")
    found = json.loads(engine().eval("JSON.stringify({...reader.cells.tiles(), levels: [...reader.cells.levels]})"))
    return data["cells"], found


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ([], MASK), ([1], loom.causal | loom.sinks(2) & ~loom.lengths([700, 300])), ([2, 3], loom.causal & loom.window(back=90)),
        ([0, 1, 2], ~loom.lengths([700, 300])), ([0, 1, 2, 3], loom.everything),
    ],
)  # fmt: skip
def test_cells_and_tiles_are_those_of_the_operands_that_are_on(off, left):
    for row in range(2):
        cells, found = told(MASK, off, row)
        high, wide = cells["size"]
        dense = torch.nn.functional.pad(
            left.dense(700, 700, batch=2)[row, 0].double(), (0, -700 % wide, 0, -700 % high), value=-1
        )
        parts = dense.unflatten(0, (-1, high)).unflatten(2, (-1, wide)).movedim(2, 1).flatten(2)
        share = (parts == 1).sum(-1) / (parts >= 0).sum(-1)
        levels = torch.tensor(found["levels"]).view(cells["shape"])
        assert torch.equal(levels == 0, share == 0) and torch.equal(levels == 15, share == 1)
        assert ((levels / 15 - share).abs() <= 1 / 15).all()
        states = tile_states(loom.block_mask(left, 700, 700, batch=2))[row, 0]
        assert torch.equal(torch.tensor([*found["state"].values()]).view(6, 6), states.long())


def test_stored_arrays_are_read_as_they_were():
    data = json.loads(loom.show.explorer.parts(MASK, 700).data)
    one = data["cells"]["shares"]["numbers"]
    assert numbers(one) == numbers(unpacked(one)) and one["packed"]
