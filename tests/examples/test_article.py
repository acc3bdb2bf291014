"""The article's experiment runs with its imports from maskloom."""

import pytest
import torch

from examples import article


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_article_runs(batch_size, tmp_path):
    torch.manual_seed(batch_size)
    path = tmp_path / "causal_padding_mask.png"
    out = article.main(batch_size, path)
    assert out.shape == (batch_size, 10, 64)
    assert out.isfinite().all()
    assert path.read_bytes().startswith(b"\x89PNG")
