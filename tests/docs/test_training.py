"""What the page about training says is what its committed rows say."""

import pytest

from docs import make_training
from docs.make_plots import rows_of

GPU = {
    "contender": "packed: attend", "device": "H", "torch": "2.11", "real": "0.999", "tokens_per_s": "123456",
    "of_first": "1.0", "memory_mib": "2048", "backends": "varlen",
}  # fmt: skip


def curve(layout, column):
    return {row["step"]: float(row[column]) for row in rows_of("train_lm") if row["layout"] == layout and row[column]}


def test_three_layouts_have_one_curve():
    for column in ("loss", "validation"):
        packed, *others = (curve(layout, column) for layout in make_training.LAYOUTS)
        for other in others:
            assert other.keys() == packed.keys()
            assert max(abs(other[step] - packed[step]) for step in packed) < 0.001  # as the page says


def test_the_curves_end_below_what_is_to_be_reached():
    rows = rows_of("train_lm")
    assert len({row["corpus"] for row in rows}) == 1 and all(row["command"] and row["device"] for row in rows)
    for layout in make_training.LAYOUTS:
        last = [row for row in rows if row["layout"] == layout][-1]
        assert float(last["validation"]) <= make_training.SHARE * float(last["unigram"])


def test_curves_are_drawn():
    figure = make_training.curves(rows_of("train_lm"))
    assert [line.get_label() for line in figure.axes[0].lines] == list(make_training.LAYOUTS)
    words = {text.get_text() for text in figure.axes[1].texts}
    assert words == {"entropy of single bytes", "0.75 of it"}


def test_rows_of_a_gpu_are_drawn_and_tabulated(monkeypatch):
    rows = [
        GPU,
        GPU | {"contender": "padded: sdpa, dense", "real": "0.65", "tokens_per_s": "70000", "of_first": "0.567"},
    ]
    assert [bar.get_width() for bar in make_training.speeds(rows).axes[0].patches] == pytest.approx([123.456, 70.0])
    monkeypatch.setattr(make_training, "rows_of", lambda name: rows)
    assert make_training.measured().splitlines()[-1] == "| padded: sdpa, dense | 65% | 70,000 | 0.57 | 2.0 | varlen |"
    monkeypatch.setattr(make_training, "rows_of", lambda name: [])
    assert make_training.measured() == "Not measured yet."
