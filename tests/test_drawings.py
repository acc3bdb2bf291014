"""The drawings in docstrings are what they say: each is read, its expression evaluated as it stands, and the two compared."""

import pytest

import maskloom as loom
from tests.drawings import Block, blocks, drawings, literal

DRAWINGS = [(block.owner, drawing) for block in blocks() for drawing in drawings(block)]


@pytest.mark.parametrize(
    "drawing",
    [drawing for _, drawing in DRAWINGS],
    ids=[f"{owner}: {drawing.expression}" for owner, drawing in DRAWINGS],
)
def test_drawings(drawing):
    drawing.check()


def test_every_mask_is_drawn():
    drawn = {owner.lower() for owner, _ in DRAWINGS}
    names = loom.masks.patterns.__all__
    assert [name for name in names if name not in drawn] == ["create_padding_mask"]  # `padding`, by its other name


@pytest.mark.parametrize(
    "wrong",
    [
        "window(back=1)   k0 k1 k2\n             q0   x  x\n             q1   x  x\n",
        "window(back=1)   k0 k1 k2\n             q0   x\n             q1   x\n",
        "padding([[True]])   k0 k1\n                q0\n",
        "axial((2, 3), axis=1)    Q x .\n                         . . .\n",
        "shifted_windows((2, 4), 2)    a a b b\n                              a a b a\n",
        "tiled(axial((2, 4), axis=0), 2)    0  1  2  5\n                                   4  3  6  7\n",
        "alibi(8), head 0   k0   k1\n               q0   0    1/4\n",
        "t5_buckets(4, max_distance=3)    0  1  2\n",
        "softcap(50.0)    40 * tanh(score / 40)\n",
        "merge(query)\n",
    ],
)
def test_a_wrong_drawing_is_seen(wrong):
    [lines] = literal("Draws.\n\n::\n\n    " + wrong.replace("\n", "\n    ") + "\n")
    found = drawings(Block("anything", lines))
    with pytest.raises((AssertionError, TypeError)):
        for drawing in found:
            drawing.check()
