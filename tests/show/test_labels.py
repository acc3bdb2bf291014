"""Ticks and letters along axes."""

import warnings

import pytest

import maskloom as loom
from maskloom.show import labels
from maskloom.show.labels import spaced, token_label


def test_labels_are_multiples_of_a_round_step_without_gaps():
    assert spaced(range(5), 5.0, apart=0.3) == [0, 1, 2, 3, 4]
    assert spaced(range(10), 2.0, apart=0.3) == [0, 2, 4, 6, 8]  # 9 would stand too close to 8, which stays
    assert spaced(range(48), 3.0, apart=0.3) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert spaced(range(50), 3.0, apart=0.2) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 49]
    assert spaced(range(37, 61), 3.0, apart=0.6) == [40, 45, 50, 55, 60]
    assert spaced(range(33, 61), 3.0, apart=0.6) == [33, 40, 50, 60]
    assert spaced([0], 0.1, apart=0.3) == [0]


def test_tokens_are_cut_and_escaped():
    assert [token_label(token) for token in ("a\tb", "  ", " x ", "supercalifragilistic")] == [
        "a\\tb",
        "␣␣",
        "␣x␣",
        "supercalifragil…",
    ]


def test_letters_that_no_font_has_are_one_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(labels, "_installed", tuple)
    with pytest.warns(
        UserWarning, match=r"no installed font has 3 of the letters, such as .*: apt install fonts-noto"
    ) as seen:
        figure = loom.show.mask(loom.causal, 3, tokens=["漢", "字", "語"], title="")
        loom.show.save_figure(figure, tmp_path / "a.png")
    assert len({str(warning.message) for warning in seen}) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
        loom.show.save_figure(loom.show.mask(loom.causal, 3, tokens=["кот", "é", "ω"]), tmp_path / "b.png")
