"""Pages that are made from code say what the code says; links and pictures of all pages exist."""

import csv
import importlib
import re
from pathlib import Path

import pytest

from docs import make_masks, make_plots

DOCS = Path(make_masks.__file__).parent


def test_the_page_of_masks_is_what_its_program_makes():
    assert (DOCS / "masks.md").read_text() == make_masks.page(), "run python -m docs.make_masks"


def code_of(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))


def test_the_code_of_score_mods_runs(capsys):
    exec(code_of("scores.md"), {})
    assert capsys.readouterr().out == "compose(softcap(50.0), alibi(8), prefer_even_keys)\n"


def test_the_code_of_your_own_mask_runs(capsys, tmp_path, monkeypatch):
    code = code_of("your_own_mask.md")
    (tmp_path / "speakers.py").write_text(code)  # a module, so that its classes pickle
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("speakers")
    assert "causal & same_speaker(int64[3, 5])" in capsys.readouterr().out


@pytest.mark.parametrize("page", DOCS.rglob("*.md"), ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def rows_of(name):
    with (DOCS.parent / "benchmarks" / "results" / name).open() as file:
        return list(csv.DictReader(file))


def test_the_measured_table_of_block_masks_is_the_committed_rows():
    shown = {
        (cells[0], cells[1]): cells[2:]
        for cells in (
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in (DOCS / "blocks.md").read_text().splitlines()
            if re.match(r"\| [\w &]+ \| \d+k \|", line)
        )
    }
    rows = rows_of("blocks.csv")
    assert len(shown) == len(rows)
    for row in rows:
        cells = shown[row["mask"], f"{int(row['length']) // 1024}k"]
        measured = [row["ours_ms"], row["ours_inexact_ms"], row["ours_first_call_ms"]]
        assert [float(cell) for cell in cells[:3]] == pytest.approx([float(value) for value in measured], abs=0.0051)
        assert cells[3] == (row["torch_eager_ms"] or "–")
        assert cells[4] == (row["times_faster"] or "–")


def test_the_shares_on_the_page_of_masks_are_committed_rows():
    rows = {row["mask"]: row for row in rows_of("masks.csv")}
    assert rows.keys() == make_masks.named().keys()
    for name, example in make_masks.named().items():
        assert rows[name]["expression"] == example.expression
        for way, share in make_masks.shares(example).items():
            assert rows[name][way] == share, name


def test_the_random_cases_are_the_committed_row():
    row = rows_of("exactness.csv")[-1]
    assert row["wrong"] == "0"
    text = (DOCS / "blocks.md").read_text()
    for name in ("cases", "identical", "undefined_in_torch"):
        assert f"{int(row[name]):,}" in text or row[name] in text, name


def test_the_measured_table_of_the_gpu_is_the_committed_rows():
    table = make_plots.gpu_table(make_plots.rows_of("blocks_gpu"))
    assert table in (DOCS / "blocks.md").read_text(), "put in what python docs/make_plots.py prints"


def test_rows_of_a_gpu_are_plotted_and_tabulated():
    row = dict.fromkeys(make_plots.GPU_COLUMNS, "") | {"device": "H", "torch": "2.11", "batch": "1", "ours_ms": "0.51"}
    rows = [
        row | {"mask": mask, "length": str(length), "torch_compiled_ms": "308.4", "torch_eager_ms": "out of memory"}
        for mask in make_plots.COLOURS
        for length in (1 << 17, 1 << 20)
    ]
    assert (
        len(make_plots.plot(rows).axes[0].lines) == 4 * (3 + 1) + 3
    )  # each mask in each style and as a label; the styles
    last = make_plots.gpu_table(rows).splitlines()[-1]
    assert last == "| 1M | 16 documents & causal | 0.51 | – | – | out of memory | 308 | – | – | – | – |"
