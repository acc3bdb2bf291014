"""What of the mask is on the screen: view.js."""

import pytest

from tests.show.explorer.engine import value


def view(queries, keys, actions="", room=(500, 700)):
    made = f"const v = new View([{queries}, {keys}]); v.resize({room[0]}, {room[1]}); {actions};"
    return value(
        f"(() => {{ {made} return {{pixels: v.pixels, middle: v.middle, spans: [v.span(0), v.span(1)], "
        "whole: v.isWhole, at: v.positionAt([100, 200]), back: v.positionAt([100, 200]).map((at, axis) => v.pixelOf(at, axis)), "
        "pair: v.pairAt([100, 200])}; })()"
    )


@pytest.mark.parametrize(
    ("queries", "keys"), [(13, 17), (1000, 1000), (131_072, 131_072), (11, 3000), (5000, 7), (1, 1)]
)
def test_at_first_all_is_seen(queries, keys):
    found = view(queries, keys)
    assert found["spans"] == [[0, queries], [0, keys]] and found["whole"]
    assert found["pixels"][0] * queries <= 500.001 and found["pixels"][1] * keys <= 700.001
    assert min(found["pixels"][0] * queries, found["pixels"][1] * keys) >= min(48, 100)
    assert found["back"] == pytest.approx([100, 200])


def test_what_is_under_the_pointer_stays_there():
    before = view(131_072, 100_000)
    after = view(131_072, 100_000, "v.zoom(200, [100, 200])")
    assert after["at"] == pytest.approx(before["at"])
    assert not after["whole"] and after["pixels"] == pytest.approx([200 * size for size in before["pixels"]])
    assert view(131_072, 100_000, "v.zoom(1e9)")["pixels"] == [48, 48]
    assert view(131_072, 100_000, "v.zoom(1e9); v.zoom(1e-12)")["whole"]


def test_the_mask_does_not_leave_the_screen():
    found = view(1000, 2000, "v.zoom(20); v.moveBy(-1e9, 1e9)")
    assert found["spans"][0][0] == 0 and found["spans"][1][1] == 2000
    shown = view(1000, 2000, "v.zoom(20); v.show([999, 0])")
    assert shown["spans"][0][1] == 1000 and shown["spans"][1][0] == 0
    assert view(3, 3, "v.resize(10, 10); v.zoom(5)")["pixels"][0] <= 48
    assert view(13, 17)["pair"] is None or view(13, 17)["pair"][0] < 13


def test_a_window_of_another_size_keeps_the_middle():
    assert view(1000, 1000, "v.zoom(10); v.moveTo([300, 700]); v.resize(300, 400)")["middle"] == [300, 700]
    assert view(1000, 1000, "v.resize(300, 400)")["whole"]
