"""The picture of the article: where it is written, and what its title is."""

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from maskloom.show.plot import visualize_attention_scores
from tests.show.looking import mask, words

B, H, HKV, Q, K, D = 3, 10, 5, 7, 11, 13


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(B, H, Q, D, generator=generator), torch.randn(B, HKV, K, D, generator=generator)


def test_visualize_writes_where_it_is_told(tensors, tmp_path, monkeypatch):
    query, key = tensors
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for path, file in (
        (None, "layer.0_mask.png"),
        ("pictures", "pictures/layer.0_mask.png"),
        (Path("new/other"), "new/other.png"),
        ("drawing.svg", "drawing.svg"),
    ):
        written = visualize_attention_scores(
            query, key, mask_mod=mask(), device="cpu", name="layer.0_mask", path=path, batch_idx=1
        )
        assert written == Path(file)
        assert written.stat().st_size > 1000
    image = imread("layer.0_mask.png")
    assert min(image.shape[:2]) > 300
    assert image.std() > 0.05
    assert "</svg>" in Path("drawing.svg").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "a.jpg"}, "a figure is saved as .png, .svg or .pdf; got suffix '.jpg'"),
        ({"name": 5}, "name is text, the title of the picture; got 5"),
        ({"name": "", "path": "."}, "name is the name of the file in the directory .; got an empty one"),
    ],
)
def test_a_file_that_cannot_be_is_said_before_anything_is_computed(tensors, monkeypatch, change, message):
    monkeypatch.setattr("maskloom.show.attention_map.attention", None)
    with pytest.raises((TypeError, ValueError), match=message):
        visualize_attention_scores(*tensors, **change)


def test_the_title_of_visualize_is_its_name(tensors, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("maskloom.show.plot.save_figure", lambda figure, path: kept.append(figure))
    query, key = tensors
    visualize_attention_scores(query, key, name="causal_padding_mask", path=tmp_path, head_idx=3)
    assert "causal padding mask\nbatch row 0, head 3" in words(kept[0])
