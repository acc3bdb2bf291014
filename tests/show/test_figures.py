"""Files of figures are whole or absent; importing draws nothing; colours can be told apart."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import maskloom as loom
from maskloom.core.words import brief
from maskloom.show import save_figure
from maskloom.show.figures import DARK, LIGHT


def picture():
    return loom.show.mask(loom.causal, 5, 7)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    figure = picture()
    path = tmp_path / "mask.png"
    path.write_text("before")

    def breaks(file, **_):
        file.write(b"half")
        raise RuntimeError("out of ink")

    monkeypatch.setattr(figure, "savefig", breaks)
    with pytest.raises(RuntimeError, match="out of ink"):
        save_figure(figure, path)
    with pytest.raises(RuntimeError, match="out of ink"):
        save_figure(figure, tmp_path / "new.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask.png"]
    assert path.read_text() == "before"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    figure = picture()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "mask.png", tmp_path / "folder.png"):
        with pytest.raises(OSError, match="cannot write the figure: .*" + re.escape(str(path))):
            save_figure(figure, path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


def test_files_have_ordinary_permissions_and_the_same_bytes_again(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    first, second = (save_figure(picture(), tmp_path / name) for name in ("a.png", "b.PNG"))
    assert first.stat().st_mode == ordinary.stat().st_mode
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["mask.jpg", "mask"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"saved as \.png, \.svg or \.pdf; got suffix '(\.jpg)?'"):
        save_figure(picture(), tmp_path / name)


@pytest.mark.parametrize("path", [3, b"mask.png"])
def test_what_is_no_path_is_named(path):
    with pytest.raises(TypeError, match=r"path is a \.png, \.svg or \.pdf file, text or a Path; got"):
        save_figure(picture(), path)
    query = torch.ones(1, 2, 3, 5)
    with pytest.raises(TypeError, match=r"path is a \.png, \.svg or \.pdf file, text or a Path; got"):
        loom.visualize_attention_scores(query, query, path=path)


DRAWN = {
    "mask": lambda **options: loom.show.mask(loom.causal, 5, 7, **options),
    "tiles": lambda **options: loom.show.tiles(loom.causal, 5, 7, **options),
    "density": lambda **options: loom.show.density(loom.causal, 5, 7, **options),
    "compare": lambda **options: loom.show.compare(loom.causal, loom.everything, 5, 7, **options),
    "attention": lambda **options: loom.show.attention(weights=torch.ones(5, 7), **options),
}


@pytest.mark.parametrize("draw", DRAWN)
def test_axes_that_cannot_be_drawn_on_are_named(draw):
    from matplotlib.figure import Figure

    figure = Figure()
    several = figure.subplots(2, 2)
    removed = several[0, 0]
    removed.remove()
    for ax, message in (
        (several, "ax is one matplotlib Axes; got ndarray"),
        (figure, "ax is one matplotlib Axes; got Figure"),
        ("ax", "ax is one matplotlib Axes; got str"),
        (removed, "ax is in no figure: it was removed"),
        (Figure().add_subplot(projection="polar"), "ax is a plane with x and y; got 'polar' axes"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            DRAWN[draw](ax=ax)
    assert DRAWN[draw](ax=several[1, 0]) is figure


@pytest.mark.parametrize("draw", [name for name in DRAWN if name != "density"])
@pytest.mark.parametrize("size", ["x", True, 0, -1.5, float("nan"), float("inf"), 10**400, 201])
def test_a_size_that_is_none_is_named(draw, size):
    with pytest.raises((TypeError, ValueError), match=f"size is a number of inches.*; got '?{brief(size)[:9]}"):
        DRAWN[draw](size=size)


TITLED = DRAWN | {"page": lambda **options: loom.show.page(loom.causal, 5, 7, **options)}


@pytest.mark.parametrize("draw", TITLED)
@pytest.mark.parametrize("title", [5, b"x", ["a"], "\ud800"])
def test_a_title_that_is_none_is_named(draw, title):
    with pytest.raises((TypeError, ValueError), match=f"title is text.*; got .*{re.escape(brief(title))}"):
        TITLED[draw](title=title)


@pytest.mark.parametrize("dpi", ["x", None, True, 0, -200, 5, float("nan"), 10**400, 1e9, 20_000])
def test_a_resolution_that_is_none_is_named(tmp_path, dpi):
    with pytest.raises((TypeError, ValueError), match=f"dpi is a number of pixels per inch.*; got '?{brief(dpi)[:9]}"):
        save_figure(DRAWN["mask"](), tmp_path / "a.png", dpi=dpi)
    assert not list(tmp_path.iterdir())


def test_a_resolution_follows_from_the_size_of_the_figure(tmp_path):
    from matplotlib.figure import Figure

    for inches, words in (
        ((8, 2), r"\(of 8.0 × 2.0 inches\), above 5 and at most 4096; got 5000"),
        ((4, 40), r"\(of 4.0 × 40.0 inches\), above 5 and at most 819; got 5000"),
        ((0, 2), "above 5 and at most 16384; got 20000"),
    ):
        with pytest.raises(ValueError, match=words):
            save_figure(Figure(figsize=inches), tmp_path / "a.png", dpi=20000 if inches[0] == 0 else 5000)


@pytest.mark.parametrize(("name", "start"), [("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("a.png", b"\x89PNG")])
def test_three_formats(tmp_path, name, start):
    assert save_figure(picture(), tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_the_colours_of_tiles_differ_in_grey(palette):
    from matplotlib.colors import to_rgb

    light = sorted(float(np.dot(to_rgb(fill), (0.299, 0.587, 0.114))) for fill in palette.by_state)
    assert np.diff(light).min() > 0.2


def test_a_dark_style_is_followed():
    import matplotlib.style
    from matplotlib.colors import to_rgb

    with matplotlib.style.context("dark_background"):
        figure = picture()
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[0, 0], to_rgb(DARK.visible))
    assert figure.get_facecolor()[:3] == (0, 0, 0)


def test_importing_does_not_import_matplotlib_and_drawing_does_not_import_pyplot(tmp_path):
    program = f"""
import sys
import maskloom, maskloom.show as plot
assert "matplotlib" not in sys.modules
import torch
tensor = torch.ones(1, 1, 3, 2)
plot.visualize_attention_scores(tensor, tensor, mask_mod=maskloom.causal, path={str(tmp_path / "a.svg")!r})
plot.save_figure(plot.tiles(maskloom.block_mask(maskloom.causal, 5, 5)), {str(tmp_path / "b.png")!r})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(loom.__file__).parents[1])},
    )
