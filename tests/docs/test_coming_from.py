"""The tables of the pages "Coming from ...": each line is a mask, and where the other library is installed it is equal."""

import re

import attn_gym.masks as gym
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import maskloom as loom
from tests.docs.test_code import PAGES


def rows(page: str) -> dict[str, str]:
    """The first code of a row's first cell, and of its second, of all tables of a page."""
    found = {}
    for first, second in re.findall(r"^\| (.*?) (?<!\\)\| (.*) \|$", PAGES[page], re.MULTILINE):
        codes = [re.findall(r"`(.*?)`", cell.replace("\\|", "|")) for cell in (first, second)]
        if codes[0] and codes[1]:
            found[codes[0][0]] = codes[1][0]
    return found


L = 16
OFFSETS = torch.tensor([0, 5, 16])
GYM = {
    **vars(gym), "loom": loom, "n": 4, "step": 2, "shape": (4, 4), "width": 4, "height": 4, "length": L,
    "mask_mod": gym.causal_mask, "offsets": OFFSETS, "is_global": torch.arange(L) == 3, "prompt": 5, "answers": [11],
    "prefix_document_id": torch.tensor([0, 0]), "parents": [-1, 0, 0, 2],
    "ancestors": gym.build_tree_ancestor_matrix([-1, 0, 0, 2], "cpu"),
}  # fmt: skip
SIZES = {
    "generate_block_diffusion_mask(length, n)": (32, 32),
    "generate_jetspec_tree_causal_mask_mod(n, ancestors)": (4, 8),
}
ODD = {"generate_natten(width, height, n, n)"}
"""Kernels are odd there."""


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [row for row in rows("from_attention_gym.md").items() if "..." not in row[0] and "..." not in row[1]],
)
def test_masks_of_attention_gym_are_equal(theirs, ours):
    names = GYM | ({"n": 3} if theirs in ODD else {})
    q_len, kv_len = SIZES.get(theirs, (L, L))
    expected = create_mask(eval(theirs, names), 1, 1, q_len, kv_len, device="cpu")
    assert loom.as_mask(eval(ours, names)).dense(q_len, kv_len).equal(expected)


def test_no_mask_of_attention_gym_is_left_out():
    made = {name for name in dir(gym) if name.startswith("generate_") or name in {"causal_mask", "batchify_mask_mod"}}
    missing = {name for name in made if f"`{name}" not in PAGES["from_attention_gym.md"]}
    assert missing == {"generate_vsa_mask_mod", "generate_jetspec_training_mask_mod"}  # as functions, like any


def loop(q_len, kv_len, sees):
    return torch.tensor([[bool(sees(q, k)) for k in range(kv_len)] for q in range(q_len)])


def blocks(q_lens, kv_lens, sees=lambda q, k, q_len, kv_len: True):
    """A table of blocks on a diagonal, each by a rule of positions in it."""
    return torch.block_diag(
        *[loop(q, k, lambda i, j, q=q, k=k: sees(i, j, q, k)).int() for q, k in zip(q_lens, kv_lens, strict=True)]
    ).bool()


LENS, Q_LENS, KV_LENS = [3, 5, 2], [2, 1, 3], [3, 4, 5]
XFORMERS = {
    "LowerTriangularMask()": loop(7, 7, lambda q, k: k <= q),
    "LowerTriangularFromBottomRightMask()": loop(3, 7, lambda q, k: k <= q + 4),
    "LowerTriangularFromBottomRightLocalAttentionMask(3)": loop(7, 7, lambda q, k: q - 3 < k <= q),
    "LocalAttentionFromBottomRightMask(2, 1)": loop(7, 7, lambda q, k: q - 2 <= k <= q + 1),
    "BlockDiagonalMask.from_seqlens(lens)": blocks(LENS, LENS),
    "BlockDiagonalMask.from_seqlens(q_lens, kv_lens)": blocks(Q_LENS, KV_LENS),
    "BlockDiagonalCausalMask.from_seqlens(lens)": blocks(LENS, LENS, lambda q, k, *_: k <= q),
    "BlockDiagonalCausalMask.from_seqlens(q_lens, kv_lens)": blocks(Q_LENS, KV_LENS, lambda q, k, *_: k <= q),
    "BlockDiagonalCausalFromBottomRightMask.from_seqlens(q_lens, kv_lens)": blocks(
        Q_LENS, KV_LENS, lambda q, k, q_len, kv_len: k <= q + kv_len - q_len
    ),
    ".make_local_attention(3)": blocks(LENS, LENS, lambda q, k, *_: q - 3 < k <= q),
}
"""What the masks of xformers show, as their `materialize` gave it."""


@pytest.mark.parametrize("theirs", XFORMERS)
def test_masks_of_xformers_mean_what_was_seen(theirs):
    expected = XFORMERS[theirs]
    q_len, kv_len = expected.shape
    names = {"loom": loom, "off": loom.batches.offsets_from_lengths, "lens": LENS, "q_lens": Q_LENS, "kv_lens": KV_LENS}
    ours = eval(rows("from_xformers.md")[theirs], names | {"q_len": q_len, "kv_len": kv_len})
    assert ours.dense(q_len, kv_len)[0, 0].equal(expected)


FLASH = {
    "cu_seqlens_q": blocks(LENS, LENS),
    "window_size=(left, right)": loop(7, 7, lambda q, k: q - 2 <= k <= q + 1),
    "window_size=(left, right), causal=True": loop(7, 7, lambda q, k: q - 2 <= k <= q),
}


@pytest.mark.parametrize("theirs", FLASH)
def test_arguments_of_flash_attn_mean_what_its_docstring_says(theirs):
    expected = FLASH[theirs]
    names = {"loom": loom, "left": 2, "right": 1, "cu_seqlens": loom.batches.offsets_from_lengths(LENS)}
    ours = eval(rows("from_flash_attn.md")[theirs], names)
    assert ours.dense(*expected.shape)[0, 0].equal(expected)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("from_")])
def test_masks_that_pages_name_are_there(page):
    for name in re.findall(r"\bloom\.((?:masks|scores|nn|batches|blocks|show|testing)\.\w+|\w+)\(", PAGES[page]):
        value = loom
        for part in name.split("."):
            value = getattr(value, part)
        assert callable(value), name
