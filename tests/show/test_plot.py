"""The picture of the article: where it is written, and what its title is."""

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import maskloom as loom
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
        ({"name": "\ud800"}, r"name is text that UTF-8 can write; got '\\ud800'"),
        ({"device": "abacus"}, "device is a torch.device, or the name of one; got 'abacus'"),
        ({"device": 1.5}, "device is a torch.device, or the name of one; got 1.5"),
        ({"score_mod": loom.causal}, "causal takes 4; with four it looks like a mask_mod, which goes to mask_mod="),
        ({"query": None}, r"query is a tensor \(batch, heads, length, head dim\); got NoneType"),
        ({"batch_idx": 3}, "batch_idx is from 0 to 2, as there are 3 batch rows; got 3"),
        ({"head_idx": -1}, "head_idx is from 0 to 9, as there are 10 heads; got -1"),
        ({"batch_idx": "all"}, "batch_idx is the batch row, an int; got str: 'all'"),
        ({"head_idx": [0, 1]}, r"head_idx is the head, an int; got list: \[0, 1\]"),
        ({"name": "", "path": "."}, "name is the name of the file in the directory .; got an empty one"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_computed(tensors, monkeypatch, change, message):
    monkeypatch.setattr("maskloom.show.attention_map.attention", None)
    with pytest.raises((TypeError, ValueError), match=message):
        visualize_attention_scores(**({"query": tensors[0], "key": tensors[1]} | change))


def test_a_mask_that_does_not_fit_is_named_by_no_argument_of_another_function(tensors, tmp_path):
    message = "^the mask reads a table for 2 batch rows, and the attention has 3$"
    with pytest.raises(ValueError, match=message):
        visualize_attention_scores(*tensors, mask_mod=loom.lengths([1, 2]), path=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_title_of_visualize_is_its_name(tensors, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("maskloom.show.plot.save_figure", lambda figure, path: kept.append(figure))
    query, key = tensors
    visualize_attention_scores(query, key, name="causal_padding_mask", path=tmp_path, head_idx=3)
    assert "causal padding mask\nbatch row 0, head 3" in words(kept[0])
