"""Every line of "Which mask is mine?" gives a mask, and those that a table is named for mean what the table says."""

import re

import pytest
import torch

import maskloom as loom
from tests.docs.test_code import BLOCK, PAGES

PAGE = PAGES["which_mask.md"]


def lines() -> list[str]:
    """The code of the last cells of the page's tables, where it is a mask."""
    found = []
    for row in re.findall(r"^\| (?!you hold|---).* \|$", PAGE, re.MULTILINE):
        last = re.split(r"(?<!\\)\|", row.strip("| "))[-1].replace("\\|", "|")
        found += [code for code in re.findall(r"`(.*?)`", last) if code.startswith("loom.")]
    return found


@pytest.fixture(scope="module")
def names():
    """What the page's own code makes, and what its lines name beside."""
    tables = [code for language, code in BLOCK.findall(PAGE) if language == "python" and "print(" not in code]
    held = {"nested": torch.nested.nested_tensor([torch.zeros(3, 5), torch.zeros(5, 5)], layout=torch.jagged)}
    held["mask_mod"] = lambda b, h, q_idx, kv_idx: q_idx >= kv_idx
    exec("\n".join(tables), held)
    return held


@pytest.mark.parametrize("line", lines())
def test_every_line_is_a_mask_that_shows_something(line, names):
    mask = eval(line, names)
    assert isinstance(mask, loom.Mask)
    dense = mask.dense(3, 8, batch=2, heads=4)
    assert dense.any() and dense.shape[-2:] == (3, 8)


def test_no_line_is_missed():
    assert len(lines()) > 60
    assert len(set(lines())) > 50


def meaning(line, names, q_len=8):
    return eval(line, names).dense(q_len, 8, batch=2)


def real_pairs(names):
    real = names["is_real"]
    return (real[:, :, None] & real[:, None, :])[:, None]


@pytest.mark.parametrize(
    "line",
    [line for line in lines() if re.search(r"^loom\.(lengths\(lens\)|real|padding)", line) and "left" not in line],
)
def test_each_form_of_padding_means_the_same(line, names):
    assert meaning(line, names).equal(real_pairs(names))


def test_padding_of_keys_alone_and_at_the_left(names):
    real = names["is_real"]
    keys = real[:, None, None].expand(2, 1, 8, 8)
    found = [line for line in lines() if line.startswith("loom.key_padding")]
    assert len(found) == 2
    for line in found:
        assert meaning(line, names).equal(keys)
    [left] = [line for line in lines() if "left" in line]
    assert meaning(left, names).equal(real_pairs(names).flip(-1, -2))


def test_each_form_of_packing_means_the_same(names):
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    same = ids[:, None] == ids
    found = [line for line in lines() if re.search(r"^loom\.documents\((offsets|position_ids)=(?!.*kv_)", line)]
    assert len(found) == 4
    for line in found:
        assert meaning(line, names)[0, 0].equal(same), line
    padded = torch.tensor([0, 0, 0, 1, 1, 1, -1, -1])
    for line in [line for line in lines() if re.search(r"^loom\.documents\((\[|torch\.tensor\(\[1)", line)]:
        assert meaning(line, names)[0, 0].equal((padded[:, None] == padded) & (padded >= 0)), line


def test_the_token_that_ends_a_document_belongs_to_it(names):
    tokens = torch.tensor([[3, 7, 4, 4, 7, 5, 5, 5]])
    [line] = [line for line in lines() if "tokens == 7" in line]
    ids = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    assert eval(line, names | {"tokens": tokens}).dense(8, 8)[0, 0].equal(ids[:, None] == ids)


@pytest.mark.parametrize("line", [line for line in lines() if line.startswith("loom.masks.from_dense")])
def test_each_form_of_table_means_the_same(line, names):
    assert (meaning(line, names) == names["table"]).all()


def test_windows_show_as_many_keys_as_their_rows_say(names):
    section = PAGE.split("| keys that a query sees |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| .* \| (\d+)\b.* \| `(loom.*?)` \|$", section, re.MULTILINE)
    assert len(rows) == 8
    for count, line in rows:
        assert eval(line, names).dense(20, 20)[0, 0, 10].sum() == int(count), line
