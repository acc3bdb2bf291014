"""What each mask shows, as it is drawn in its docstring."""

import pytest
import torch

import maskloom as loom


def drawn(mask, q_len, kv_len, row=0):
    table = mask.dense(q_len, kv_len)[row, 0]
    return ["".join("x" if seen else "." for seen in line) for line in table.tolist()]


@pytest.mark.parametrize(
    ("mask", "picture"),
    [
        (loom.causal, "x... xx.. xxx. xxxx"),
        (loom.window(back=1), "x... xx.. .xx. ..xx"),
        (loom.window(back=1, ahead=2), "xxx. xxxx .xxx ..xx"),
        (loom.prefix(2), "xx.. xx.. xx.. xx.."),
        (loom.causal | loom.prefix(2), "xx.. xx.. xxx. xxxx"),
        (loom.sinks(2), "x... xx.. xx.. xx.."),
        (loom.window(back=1) | loom.sinks(1), "x... xx.. xxx. x.xx"),
        (loom.lengths([3]), "xxx. xxx. xxx. ...."),
        (loom.lengths([1], [2]), "xx.. .... .... ...."),
        (loom.documents(offsets=[0, 1, 3], length=4), "x... .xx. .xx. ...."),
        (loom.documents([5, -1, 5, 2]), "x.x. .... x.x. ...x"),
        (loom.causal ^ loom.window(back=0), ".... x... xx.. xxx."),
    ],
)
def test_pictures(mask, picture):
    assert drawn(mask, 4, 4) == picture.split()


def test_padding_hides_both_sides_and_key_padding_one():
    pads = torch.tensor([[False, True, False], [True, False, False]])
    assert drawn(loom.padding(pads), 3, 3) == ["x.x", "...", "x.x"]
    assert drawn(loom.padding(pads), 3, 3, row=1) == ["...", ".xx", ".xx"]
    assert drawn(loom.real(~pads), 3, 3) == ["x.x", "...", "x.x"]
    assert drawn(loom.real((~pads).int()), 3, 3, row=1) == ["...", ".xx", ".xx"]
    assert drawn(loom.key_padding(pads), 3, 3) == ["x.x"] * 3
    assert drawn(loom.padding(pads[:, :2], pads), 2, 3) == ["x.x", "..."]
    assert loom.create_padding_mask(pads) == loom.padding(pads)


def test_ragged_windows_for_cross_lengths():
    assert drawn(loom.window(back=1), 2, 5) == ["x....", "xx..."]
    assert drawn(loom.causal, 3, 2) == ["x.", "xx", "xx"]
