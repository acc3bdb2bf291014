import base64
import hashlib
import html
import os
import re
from pathlib import Path

import pytest
import torch

import maskloom as loom
from maskloom.show.explorer.page import Page
from tests.show.explorer.reading import data_of, grids, numbers, text

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u2028\u2029", "\0", "\ud800", "\u202eabc", "a&amp;b",
    "<!--<script>", "]]>", '"\\', "日本語", "{script}", "🙂",
]  # fmt: skip


def page(*args, **options) -> str:
    found = loom.show.page(*args, **options)
    assert isinstance(found, Page)
    return found.html


def test_a_page_loads_nothing_and_runs_its_own_script_alone():
    found = page(loom.causal & loom.window(back=3), 13)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', found)
    style, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", found, re.DOTALL)[-1] for tag in ("style", "script"))
    hashes = ["sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)]
    assert policy == (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; script-src '{hashes[0]}'; style-src '{hashes[1]}'"
    )
    assert (
        "unsafe" not in found and "eval(" not in script and "new Function" not in script and "innerHTML" not in script
    )
    assert not re.search(
        r"https?://|url\(|src=|href=|@import|fetch\(|XMLHttp|import\(", found.replace("http-equiv", "")
    )
    assert found.count("<script") == 2 and found.startswith("<!doctype html>")


def test_hostile_tokens_are_data():
    found = page(loom.causal, tokens=HOSTILE, title="</title><script>alert(2)</script>\u202e")
    assert found.count("<script") == 2 and "alert(1)" not in found and "<img" not in found
    assert "&lt;/title&gt;&lt;script&gt;alert(2)&lt;/script&gt;\ufffd" in found
    found.encode("utf-8")
    data = data_of(found)
    assert text(data["tokens"]["queries"]) == HOSTILE and data["tokens"]["same"]
    assert data["title"] == "</title><script>alert(2)</script>\u202e"
    inside = re.search(r"application/json\">(.*?)</script>", found, re.DOTALL)
    assert inside and inside[1].isascii() and not set("<>&") & set(inside[1])


def test_the_data_say_what_the_mask_shows():
    mask = loom.causal & loom.lengths([7, 5, 2], [11, 3, 2])
    data = data_of(page(mask, 7, 11, batch=[2, 0]))
    assert data["sizes"] == [7, 11] and data["block"] == [128, 128]
    assert data["batch"] == {"item": "batch row", "count": 3, "varies": True, "chosen": [2, 0]}
    assert data["heads"]["chosen"] == [0] and not data["heads"]["varies"]
    assert data["expression"] == {"join": "and", "of": [{"leaf": 0}, {"leaf": 1}]}
    assert [operand["name"] for operand in data["operands"]] == ["causal", "lengths(int64[3], int64[3])"]
    cells = data["cells"]
    assert cells["size"] == [1, 1] and cells["shape"] == [7, 11] and cells["exact"]
    for place, row in enumerate([2, 0]):
        levels = torch.tensor(grids(cells["shares"])[cells["shares"]["which"][place][0]]).view(7, 11)
        assert torch.equal(levels == 15, mask.dense(7, 11)[row, 0]) and set(levels.unique().tolist()) == {0, 15}
    assert [states["count"] for states in cells["states"]] == [1, 2]


def test_equal_batch_rows_are_stored_once():
    mask = loom.causal & loom.lengths([5, 11] * 16)
    data = data_of(page(mask, 11))
    assert len(data["batch"]["chosen"]) == 32 and data["cells"]["shares"]["count"] == 2


def test_a_block_mask_is_its_tiles_and_its_mask():
    blocks = loom.block_mask(loom.window(back=130), 512, 384)
    data = data_of(page(blocks))
    assert data["sizes"] == [512, 384] and data["mask"].startswith("block mask of window(back=130")
    names = [operand["name"] for operand in data["operands"]]
    assert names[0] == "partial tiles of the block mask" and names[1].startswith("window(back=130")
    full = loom.block_mask(loom.causal, 300, 300)
    assert data_of(page(full))["expression"]["join"] == "or"
    with pytest.raises(ValueError, match=r"a BlockMask has its own block size, \(128, 128\); got block_size=64"):
        page(full, block_size=64)


def test_a_table_a_mask_mod_and_masks_with_lengths_of_their_own():
    assert data_of(page(torch.ones(5, 7).bool()))["sizes"] == [5, 7]
    assert data_of(page(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, 5))["sizes"] == [5, 5]
    assert data_of(page(loom.documents(offsets=[0, 5, 9])))["sizes"] == [9, 9]
    assert data_of(page(loom.causal, tokens=list("abc")))["sizes"] == [3, 3]
    assert data_of(page(loom.causal, tokens=list("abc"), key_tokens=list("abcde")))["sizes"] == [3, 5]
    assert data_of(page(loom.causal, scores=torch.rand(5, 7)))["sizes"] == [5, 7]


def test_documents_are_told_by_position():
    ids = torch.tensor([[0, 0, 1], [2, -1, 2], [0, 0, 1]])
    (found,) = data_of(page(loom.causal & loom.documents(ids)))["documents"]
    assert found["queries"]["which"] == [0, 1, 0]
    assert (numbers(found["keys"]["ids"]), found["keys"]["length"]) == ([0, 0, 1, 2, -1, 2], 3)
    cross = loom.documents(offsets=[0, 2, 3], kv_offsets=[0, 1, 5])
    (found,) = data_of(page(cross))["documents"]
    assert [numbers(found[side]["ids"]) for side in ("queries", "keys")] == [[0, 0, 1], [0, 1, 1, 1, 1]]
    inside = loom.masks.within(loom.documents(offsets=[0, 2, 5]), loom.window(back=1))
    assert numbers(data_of(page(inside))["documents"][0]["keys"]["ids"]) == [0, 0, 1, 1, 1]


def test_what_the_page_cannot_run_is_measured_and_said():
    def near(b, h, q_idx, kv_idx):
        return (q_idx - kv_idx).float().exp() < 3

    data = data_of(page(loom.as_mask(near) & loom.causal, 700))
    assert data["operands"][0]["slot"] is None and "exp is not known" in data["operands"][0]["reason"]
    assert data["operands"][1]["slot"] is not None
    assert data["cells"]["size"] == [1, 1]


# -- scores --------------------------------------------------------------------------------------------------------------


def test_weights_of_few_pairs_are_exact():
    scores = torch.rand(2, 3, 5, 7)
    scores[1, 2, 4, 6], scores[1, 2, 3, 5] = float("nan"), float("inf")
    data = data_of(page(loom.causal, scores=scores))
    assert data["batch"]["chosen"] == [0, 1] and data["heads"]["chosen"] == [0, 1, 2]
    found = data["scores"]
    assert (found["side"], found["shape"], found["grids"][0]["book"]) == (1, [5, 7], None)
    grid = torch.tensor(numbers(found["grids"][found["which"][1][2]]["numbers"])).view(5, 7)
    assert torch.equal(grid.isnan(), ~scores[1, 2].isfinite())
    assert torch.equal(grid.nan_to_num(0), torch.where(scores[1, 2].isfinite(), scores[1, 2], 0))


def test_scores_of_one_row_are_for_all():
    found = data_of(page(loom.lengths([5, 3]), 5, scores=torch.rand(1, 1, 5, 5)))["scores"]
    assert found["which"] == [[0], [0]] and len(found["grids"]) == 1


def read(grid, *shape):
    """The weights of a grid."""
    return torch.tensor([float("nan"), *grid["book"]])[torch.tensor(numbers(grid["numbers"]))].view(shape)


def test_weights_are_single_to_2048_tokens_and_means_above():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2048, 2048, generator=generator)
    found = page(loom.causal, scores=weights)
    scores = data_of(found)["scores"]
    assert (scores["side"], scores["shape"], len(scores["grids"][0]["book"])) == (1, [2048, 2048], 62)
    assert len(found) <= 5_000_000
    assert (read(scores["grids"][0], 2048, 2048) - weights).abs().max() < 0.03
    longer = torch.rand(2050, 2049, generator=generator)
    scores = data_of(page(loom.causal, scores=longer))["scores"]
    assert (scores["side"], scores["shape"]) == (2, [1025, 1025])
    assert abs(read(scores["grids"][0], 1025, 1025)[7, 11] - longer[14:16, 22:24].mean()) < 0.03


def test_small_weights_beside_large_ones_are_told_apart():
    logits = 3 * torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    weights = logits.masked_fill(~torch.ones(2048, 2048).tril().bool(), -torch.inf).softmax(-1)
    found = page(loom.causal, scores=weights)
    assert len(found) <= 5_000_000
    (grid,) = data_of(found)["scores"]["grids"]
    shown = read(grid, 2048, 2048)
    assert torch.equal(shown == 0, weights < grid["book"][1] / 2)
    large = weights > 1e-4
    assert ((shown / weights)[large].log().abs() < 0.1).all() and shown[0, 0] == 1


def test_many_heads_have_coarser_weights_and_room():
    scores = torch.rand(1, 13, 512, 512, generator=torch.Generator().manual_seed(0))
    found = page(loom.causal, scores=scores)
    assert data_of(found)["scores"]["side"] == 1 and len(found) <= 5_000_000
    few = page(loom.causal, scores=scores.repeat(2, 1, 1, 1), heads=[1, 2])
    assert len(data_of(few)["scores"]["grids"]) == 4


# -- sizes ---------------------------------------------------------------------------------------------------------------


def test_long_masks_have_small_pages():
    offsets = [0, 3000, 3000, 70000, 131072]
    for mask in (
        loom.causal & loom.documents(offsets=offsets) & loom.window(back=1023) | loom.sinks(4),
        loom.causal & loom.padding(torch.rand(2, 131072, generator=torch.Generator().manual_seed(0)) < 0.3),
    ):
        found = page(mask, 131072)
        assert len(found) <= 2_000_000
        assert data_of(found)["cells"]["shape"] == [1024, 1024] or len(data_of(found)["batch"]["chosen"]) > 1
    tokens = [f"token {place % 977}" for place in range(131072)]
    assert len(page(loom.causal, tokens=tokens)) <= 2_000_000


def test_a_small_mask_adds_little_to_the_script():
    parts = loom.show.explorer.parts(loom.causal & loom.documents(offsets=[0, 50, 90, 128]), batch=0)
    assert len(parts.element) <= 6_000
    assert len(loom.show.explorer.script()) + len(loom.show.explorer.style()) <= 100_000
    assert html.escape(parts.title) in parts.html and parts.element in parts.html


def test_too_large_tables_are_refused_with_their_size():
    table = torch.rand(3, 4096, 4096, generator=torch.Generator().manual_seed(0)) < 0.5
    with pytest.raises(
        ValueError,
        match=r"the tables that the mask reads take 8,\d{3},\d{3} bytes compressed, and a page has room for 4,500,000; the "
        r"largest is bool\[3, 4096, 4096\], equal batch rows and heads counted once. Choose fewer with batch= and heads=",
    ):
        page(loom.masks.from_dense(table))
    assert len(page(loom.masks.from_dense(table), batch=1)) < 5_000_000
    same = loom.masks.from_dense(table[:1].expand(11, -1, -1))
    assert len(page(same)) < 5_000_000
    with pytest.raises(ValueError, match=r"take 300,000,\d{3} bytes, and a page reads at most 268,435,456"):
        page(loom.masks.from_dense(torch.zeros(30_000, 10_000).bool()))


# -- errors, before any work ---------------------------------------------------------------------------------------------


ERRORS = {
    "a page is saved as .html or .htm; got suffix '.png' in 'mask.png'": {"path": "mask.png"},
    "tokens has one label for each of 5 positions; got 3": {"tokens": list("abc")},
    "tokens is a sequence of labels, one for each position; got one string: 'abcde'": {"tokens": "abcde"},
    "key_tokens has one label for each of 5 positions; got 2": {"key_tokens": list("ab")},
    "batch is from 0 to 1, as there are 2 batch rows; got 2": {"batch": 2},
    "heads is the number of a head, at least 0; got -1": {"heads": -1},
    "scores has shape (B, H, Q, K), (H, Q, K) or (Q, K); got (5,)": {"scores": torch.rand(5)},
    "scores are for Q=5 queries and K=5 keys, shape (..., Q, K); got (5, 7)": {"scores": torch.rand(5, 7)},
    "scores have 3 batch rows, and the mask has 2": {"scores": torch.rand(3, 1, 5, 5)},
    "a page has at most 256 pairs of a batch row and a head; got 2 × 200: choose some with batch= and heads=": {
        "scores": torch.rand(2, 200, 5, 5)
    },
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_does_not_fit_is_named(message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        page(loom.lengths([5, 3]), 5, **ERRORS[message])


def test_other_things_are_refused():
    with pytest.raises(TypeError, match=r"scores is a floating point tensor .*; got torch\.int64"):
        page(loom.causal, 5, scores=torch.ones(5, 5).long())
    with pytest.raises(ValueError, match="causal has no length of its own: give q_len"):
        page(loom.causal)
    with pytest.raises(TypeError, match="title is text; got int: 5"):
        page(loom.causal, 5, title=5)
    with pytest.raises(TypeError, match=r"path is a \.html or \.htm file, text or a Path; got int: 7"):
        page(loom.causal, 5, path=7)
    with pytest.raises(TypeError, match="a mask is a function"):
        page("causal", 5)


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = loom.show.page(loom.causal, 5, path=tmp_path / "new" / "mask.HTML")
    assert path.read_text("utf-8") == page(loom.causal, 5) and os.listdir(path.parent) == ["mask.HTML"]
    assert loom.show.page(loom.causal, 5).save(path) == path
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.html").mkdir()

    def never(b, h, q_idx, kv_idx):
        raise AssertionError("the mask was asked")

    for wrong, words in (("file/mask.html", "Not a directory"), ("folder.html", "Is a directory")):
        with pytest.raises(OSError, match=f"cannot write the page: {words}") as error:
            loom.show.page(never, 5, path=tmp_path / wrong)
        assert error.value.filename == str(tmp_path / wrong)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "mask.html"
    path.write_text("old")

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="cannot write the page: No space left on device"):
        loom.show.page(loom.causal, 5, path=path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["mask.html"]


def test_a_notebook_shows_it_in_a_frame():
    found = loom.show.page(loom.causal, 5)
    frame = found._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts" ') and frame.count("<") == 2
    assert html.unescape(re.search(r'srcdoc="(.*)"></iframe>', frame, re.DOTALL)[1]) == found.html
    assert re.fullmatch(r"Page\(\d+,\d{3} bytes of HTML\)", repr(found))


def test_the_code_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docs = Path(__file__).parents[3] / "docs" / "look_at_it.md"
    section = docs.read_text().split("## A page to explore")[1].split("## ")[0]
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code, {"loom": loom, "torch": torch})
    assert data_of(Path("mask.html").read_text("utf-8"))["sizes"] == [8, 8]
