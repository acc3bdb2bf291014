"""Pictures of what lies on a GPU are those of what lies on the CPU."""

import io

import pytest
import torch

import maskloom as loom

LENS = torch.tensor([13, 5, 7])


def pixels(figure):
    written = io.BytesIO()
    figure.savefig(written, format="raw", dpi=60)
    return written.getvalue()


def mask():
    return loom.causal & loom.lengths(LENS)


@pytest.mark.parametrize("draw", [loom.show.mask, loom.show.tiles, loom.show.density])
def test_masks_and_block_masks(draw):
    assert pixels(draw(mask().to("cuda"), 13, 13)) == pixels(draw(mask(), 13, 13))
    blocks = [loom.block_mask(one, 13, 13, block_size=4) for one in (mask().to("cuda"), mask().to("cpu"))]
    assert pixels(draw(blocks[0])) == pixels(draw(blocks[1]))


def test_attention():
    query, key = (torch.randn(3, 2, 13, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    ours = loom.show.attention(query.cuda(), key.cuda(), mask().to("cuda"))
    assert len(pixels(ours)) == len(pixels(loom.show.attention(query, key, mask())))


def test_notebooks():
    assert "<" in mask().to("cuda")._repr_html_()


def test_pages():
    weights = torch.rand(3, 2, 13, 13, generator=torch.Generator().manual_seed(0))
    ours = loom.show.page(mask().to("cuda"), 13, scores=weights.cuda())
    assert ours == loom.show.page(mask(), 13, scores=weights)
    blocks = [loom.block_mask(one, 13, 13, block_size=4) for one in (mask().to("cuda"), mask().to("cpu"))]
    assert loom.show.page(blocks[0]) == loom.show.page(blocks[1])
