"""Files of figures are whole or absent; importing draws nothing; colours can be told apart."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import maskloom as loom
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
