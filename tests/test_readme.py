"""The README's code runs, its pictures exist, and its figures are those of committed rows."""

import csv
import inspect
import operator
import re
from pathlib import Path

import pytest
import torch
from attn_gym.masks import generate_sliding_window

import maskloom as loom
from docs import make_tables
from maskloom.masks import window_reaching_back
from maskloom.testing import public_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", CODE)
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it draws a picture
    exec(code, {})


def test_all_the_code_is_found():
    assert len(CODE) == README.count("```python") > 0


def test_pictures_exist():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    for path in pictures:
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG"), path


def test_links_lead_somewhere():
    links = re.findall(r"[^!]\[.*?\]\(([^)#:]*)\)", README)
    assert links
    for path in links:
        assert (ROOT / path).exists(), path


def test_figures_are_committed_rows():
    assert make_tables.page("../README.md") == README, "run python -m docs.make_tables"
    with (ROOT / "benchmarks/results/attention_cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = README.split("<!-- attention_cpu -->")[1].split("<!-- /attention_cpu -->")[0]
    shown = [line.split("|")[1:-1] for line in table.strip().splitlines()[2:]]
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        length = re.search(r"N(\d+)", row["shape"]).group(1)
        expected = [row["contender"], length, row["forward_ms"], row["forward_backward_ms"], row["peak_mib"]]
        assert [cell.strip().strip("`") for cell in line] == expected


def test_what_a_newcomer_needs_stands_before_the_first_table_of_reference():
    first = README[: README.index("## Masks")].splitlines()
    assert len(first) <= 86
    assert first.index("## Measured") <= 64
    pages = set(re.findall(r"\]\(docs/(\w+)\.md", "\n".join(first)))
    guides = {
        "train_a_model",
        "padded_or_packed",
        "decoding",
        "several_gpus",
        "hugging_face",
        "look_at_it",
        "your_own_mask",
    }
    others = ("multihead_attention", "hugging_face", "flash_attn", "xformers", "attention_gym", "flex_attention")
    assert guides | {f"from_{name}" for name in others} | {"start", "which_mask"} <= pages
    assert "pip install maskloom" not in README  # the name is nobody's yet
    assert f"maskloom-{loom.__version__}-py3-none-any.whl" in README


def test_who_comes_from_another_library_finds_lines_that_run():
    section = " ".join(README.split("## I come from")[1].split("## Measured")[0].split())
    names = {"loom": loom, "lens": [5, 2], "cu_seqlens": torch.tensor([0, 5, 7], dtype=torch.int32)}
    names["generate_sliding_window"] = generate_sliding_window
    masks = [eval(code, names) for code in re.findall(r"`(loom\.(?:causal|as_mask).*?)`", section)]
    assert len(masks) == 3
    documents = loom.causal & loom.documents(offsets=[0, 5, 7])
    for mask in masks[:2]:
        assert torch.equal(mask.dense(7, 7), documents.dense(7, 7))
    assert torch.equal(
        masks[2].dense(300, 300, batch=2), (window_reaching_back(256) & loom.lengths([5, 2])).dense(300, 300)
    )
    for name in re.findall(r"`loom\.((?:nn\.)?\w+)`", section):
        assert operator.attrgetter(name)(loom), name


def test_every_option_of_attend_is_told():
    options = [
        name for name, given in inspect.signature(loom.attend).parameters.items() if given.kind is given.KEYWORD_ONLY
    ]
    table = README.split("| option | |")[1].split("\n\n")[0]
    assert re.findall(r"`(\w+)`(?=,| \|)", "\n".join(re.findall(r"^\| (.*? \|)", table, re.MULTILINE))) == options[1:]
    assert f"`attend(query, key, value, mask, {options[0]}=...)`" in README


def test_names_stand_in_the_order_of_the_readme():
    sections = [
        README.index(f"## {title}") for title in ("Masks", "Block masks", "Attention", "Pictures", "More measurements")
    ]
    firsts = {"causal": 0, "block_mask": 1, "attend": 2, "visualize_attention_scores": 3}
    assert sorted(firsts, key=loom.__all__.index) == list(firsts)
    for name, section in firsts.items():
        assert f"`{name}" in README[sections[section] : sections[section + 1]], name


def test_every_public_name_is_mentioned():
    pages = README + "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    for name in public_names():
        assert name in pages or name in {"and_masks", "or_masks", "create_padding_mask"}, name
