"""Pages that are made from code say what the code says; links and pictures of all pages exist."""

import csv
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maskloom as loom
from docs import make_backends, make_masks, make_measured, make_plots, make_tables
from maskloom.attention import tables, written_out
from maskloom.attention.backends import choose, flash, sdpa
from maskloom.masks.simplify import describe
from maskloom.testing import public_names

DOCS = Path(make_masks.__file__).parent


def test_the_page_of_masks_is_what_its_program_makes():
    assert (DOCS / "masks.md").read_text() == make_masks.page(), "run python -m docs.make_masks"


@pytest.mark.parametrize("page", make_tables.PAGES)
def test_the_tables_of_pages_are_what_their_program_makes(page):
    assert (DOCS / page).read_text() == make_tables.page(page), "run python -m docs.make_tables"


def test_a_page_without_a_place_for_a_table_is_an_error():
    with pytest.raises(ValueError, match=r"no place for the table 'grid': <!-- grid -->"):
        make_tables.filled("<!-- grid -->", {"grid": str})


def code_of(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))


def printed_in(page):
    """What the page shows as printed by its code."""
    return re.findall(r"```text\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_code_of_your_own_mask_runs(capsys, tmp_path, monkeypatch):
    code = code_of("your_own_mask.md")
    (tmp_path / "speakers.py").write_text(code)  # a module, so that its classes pickle
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("speakers")
    assert "causal & same_speaker(int64[3, 5])" in capsys.readouterr().out


def test_the_page_of_backends_says_what_simplify_makes():
    section = (DOCS / "notes" / "backends.md").read_text().split("## Cheaper masks")[1].split("\n- ")[0]
    rows = [re.findall(r"`(.*?)`", line.replace("\\|", "|"))[:2] for line in section.splitlines() if line[:3] == "| `"]
    names = {**public_names(), "lens": torch.tensor([9, 6]), "offsets": torch.tensor([0, 4, 9])}
    names["positions"] = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4])
    assert [describe(loom.masks.simplify(eval(mask, names))) for mask, _ in rows] == [becomes for _, becomes in rows]
    assert len(rows) == 7


def test_what_the_page_of_backends_says_of_the_gain_of_simplify():
    rows = make_backends.measured("simplify")
    works = {(shape, mask) for shape, mask, _ in rows}
    assert {mask for _, mask in works} == {"causal & lengths", "causal & window", "causal & documents"}
    for shape, mask in works:
        given, simple = (rows[shape, mask, f"attend, {way}"] for way in ("as given", "simplified"))
        assert float(simple["forward_ms"]) < float(given["forward_ms"])
        longer = [float(simple[part]) > float(given[part]) for part in ("backward_ms", "step_ms")]
        assert longer == [mask == "causal & lengths"] * 2


def test_the_code_of_block_masks_runs(capsys):
    exec(code_of("blocks.md").split("from dataclasses")[0], {})
    assert capsys.readouterr().out == "".join(printed_in("blocks.md")[:-1])


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_the_loader_of_the_page_of_block_masks_runs(start, tmp_path):
    code = "from dataclasses" + code_of("blocks.md").split("from dataclasses")[1]
    assert '"spawn"' in code
    (tmp_path / "loading.py").write_text(code.replace('"spawn"', f'"{start}"'))
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    run = subprocess.run(
        [sys.executable, "loading.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout == printed_in("blocks.md")[-1], run.stderr


def test_the_code_of_padded_or_packed_runs(capsys, tmp_path):
    pages = re.findall(r"```python\n(.*?)```", (DOCS / "padded_or_packed.md").read_text(), re.DOTALL)
    for code, printed in zip(pages, printed_in("padded_or_packed.md"), strict=True):
        if "__main__" not in code:
            exec(code, {"torch": torch, "loom": loom})
            assert capsys.readouterr().out == printed
            continue
        (tmp_path / "training.py").write_text(code)
        paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
        run = subprocess.run(
            [sys.executable, "training.py"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
        )  # fmt: skip
        assert run.stdout == printed, run.stderr


def test_the_code_of_several_gpus_runs_on_two_processes(tmp_path):
    (tmp_path / "shared.py").write_text(code_of("several_gpus.md"))
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "shared.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.stdout == printed_in("several_gpus.md")[0], run.stderr


WRITTEN = [*sorted(DOCS.rglob("*.md")), *sorted(DOCS.parent.glob("*.md"))]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_and_pictures_exist(page):
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_an_anchor_is_found_in_its_heading(tmp_path):
    (tmp_path / "page.md").write_text("# How it is run, and why\n```\n# no heading\n```\n### `a & b`: both\n")
    assert anchors(tmp_path / "page.md") == {"how-it-is-run-and-why", "a--b-both"}


def rows_of(name):
    with (DOCS.parent / "benchmarks" / "results" / name).open() as file:
        return list(csv.DictReader(file))


def test_the_shares_on_the_page_of_masks_are_committed_rows():
    rows = {row["mask"]: row for row in rows_of("masks.csv")}
    assert rows.keys() == make_masks.named().keys()
    for name, example in make_masks.named().items():
        assert rows[name]["expression"] == example.expression
        for way, share in make_masks.shares(example).items():
            assert rows[name][way] == share, name


def test_masks_of_packed_batches_are_as_cheap_as_the_page_says():
    text = " ".join((DOCS / "hugging_face.md").read_text().split())
    least = int(re.search(r"takes more than (\d+) times as long as maskloom", text)[1])
    assert all(float(row["ratio"]) > least and row["length"] == "8192" for row in rows_of("transformers_masks.csv"))


def test_the_random_cases_are_the_committed_row():
    row = rows_of("exactness.csv")[-1]
    assert row["wrong"] == "0"
    text = (DOCS / "notes" / "blocks.md").read_text()
    for name in ("cases", "identical", "undefined_in_torch"):
        assert f"{int(row[name]):,}" in text or row[name] in text, name


def test_backends_stand_in_their_order_and_none_was_wrong():
    names = re.findall(r"^\| `(\w+)`", make_backends.order(), re.MULTILINE)
    assert names == list(choose.BACKENDS)
    verdicts = {row["verdict"].split(":")[0] for row in make_backends.grid()}
    assert verdicts == {"right", "refused"}


def test_what_the_page_of_backends_says_of_bounds_and_speed():
    text = " ".join((DOCS / "backends.md").read_text().split())
    for said in (
        f"up to {tables.KEPT_BYTES >> 20} MiB",
        f"of at most {sdpa.CHUNK >> 20} Mi scores",
        f"at most {10 * 4 * written_out.CHUNK >> 20} MiB of scores",  # ten tables of them in float32
        f"head dims {' and '.join(map(str, flash._FLASH_HEAD_DIMS))} only",
    ):
        assert said in text, said


def test_what_the_page_of_backends_says_of_speed():
    rows = make_backends.measured("padded")
    for shape in make_backends.shapes(rows):
        packed, varlen, auto = (
            make_backends.step(rows, shape, "documents & causal", name)
            for name in ("torch varlen, packed", "attend, varlen", "attend, auto")
        )
        assert auto < packed < varlen
    rows = make_backends.measured("short")
    triton, flash = (
        make_backends.step(rows, "B256 H16 N128 D128", "causal & lengths", f"attend, {name}")
        for name in ("triton", "flash")
    )
    assert triton < flash


@pytest.fixture
def rows_of_attention(monkeypatch):
    """Rows as benchmarks/attention_gpu.py writes them, in place of the committed ones."""
    parts = ("forward", "backward", "host_forward", "host_backward", "step")

    def row(mask, contender, shape, *times):
        cells = {f"{part}_ms": time for part, time in zip(parts, times or [""] * 5, strict=True)}
        speeds = {f"{part}_tflops": "100.4" if times else "" for part in parts[:2]}
        return {"section": "padded", "shape": shape, "mask": mask, "contender": contender, **cells, **speeds}

    long, brief = "B4 H16 N16384 D128", "B8 H16 N4096 D128"
    rows = [
        row("causal & lengths", "attend, flash", long, "4", "11", "0.2", "0.3", "15"),
        row("causal & lengths", "attend, flash", brief, "0.6", "1.8", "0.2", "0.3", "2.5"),
        row("causal & lengths", "attend, auto", brief, "0.6", "1.9", "0.25", "0.35", "2.56"),
        row("causal & lengths", "flex_attention, flash", brief, "0.6", "1.7", "0.1", "0.1", "2.4"),
        row("causal & lengths", "flex_attention, triton", brief),
        row("causal & padding", "sdpa, dense mask", brief, "3", "9", "0.1", "0.1", "12.8"),
        row("causal & padding", "attend, auto", brief, "0.6", "1.9", "0.25", "0.35", "2.56"),
    ]
    monkeypatch.setattr(make_backends, "rows_of", lambda name: rows)


def test_rows_of_attention_are_tabulated_where_some_have_no_times(rows_of_attention):
    lines = make_backends.attention().splitlines()
    assert "| causal & lengths | `attend, flash` | 100 | 100 | 2.50 | 100 | 100 | 15.00 |" in lines
    assert "| causal & lengths | `flex_attention, triton` | – | – | – | – | – | – |" in lines
    assert lines[-1].startswith("|")  # these rows are not the older ones


def test_steps_with_torch_and_with_attend_stand_side_by_side(rows_of_attention):
    lines = make_backends.beside_torch().splitlines()
    assert lines[0] == "| mask | with torch | torch, N=4k | attend, N=4k | torch, N=16k | attend, N=16k |"
    assert lines[2:] == [
        "| causal & lengths | `flex_attention, flash` | 2.40 | 2.56 | – | – |",
        "| causal & lengths | `flex_attention, triton` | – | 2.56 | – | – |",
        "| causal & padding | `sdpa, dense mask` | 12.80 | 2.56 | – | – |",
    ]


def test_block_masks_with_torch_and_with_maskloom_stand_side_by_side(monkeypatch):
    times = {"ours_ms": "0.139", "torch_eager_ms": "", "torch_compiled_ms": "0.229"}
    row = times | {"mask": "causal", "batch": "8", "torch_compiled_first_call_ms": "23319.066"}
    rows = [row | {"length": str(length)} for length in (1 << 20, 1 << 13, 1 << 12)]
    monkeypatch.setattr(make_tables, "rows_of", lambda name: rows)
    lines = make_tables.blocks_beside_torch("blocks_gpu", [1 << 12, 1 << 20]).splitlines()
    assert lines[2:] == [f"| {length} | causal, batch 8 | 0.14 | – | 0.23 | 23319 |" for length in ("4k", "1M")]


def test_a_mask_as_given_and_simplified_is_tabulated(monkeypatch):
    row = {
        "section": "simplify",
        "shape": "B8 H16 N4096 D128",
        "mask": "causal & window",
        "contender": "attend, as given",
    }
    times = {"forward_ms": "0.5", "backward_ms": "1.25", "step_ms": ""}
    monkeypatch.setattr(make_backends, "rows_of", lambda name: [row | times])
    line = "| 8 rows of 4k | causal & window | `attend, as given` | 0.50 | 1.25 | – |"
    assert make_backends.simplified().splitlines()[-1] == line


def test_what_attend_adds_is_tabulated(rows_of_attention):
    lines = make_backends.host().splitlines()
    assert "| 8 rows of 4k | causal & lengths | `attend, auto` | 0.60 | 1.90 | 0.25 | 0.35 | 2.56 |" in lines
    assert len(lines) == 2 + 4


def test_aims_are_put_beside_what_came_of_them(rows_of_attention):
    found = [line.strip("| ").split(" | ")[1:] for line in make_backends.aims().splitlines() if "---" not in line]
    assert found == [
        ["N=4k", "N=16k"],
        ["4.8", "–"],
        ["4.8", "–"],
        ["5.0", "–"],
        ["100", "–"],
        ["100", "–"],
        ["92.0 % (`causal & lengths`, `flex_attention, flash`)", "–"],
        ["flash 4.3 %", "–"],
    ]


def test_aims_of_block_masks_are_put_beside_what_came_of_them(monkeypatch):
    row = {"mask": "causal", "length": "1048576", "ours_ms": "8.0", "torch_compiled_ms": "832.0"}
    cells = dict.fromkeys(("ours_first_call_ms", "ours_peak_mb", "tables_mb", "torch_eager_ms"), "")
    rows = [cells | row, cells | row | {"mask": "window 1k", "ours_ms": "9.5", "torch_eager_ms": "out of memory"}]
    monkeypatch.setattr(make_tables, "rows_of", lambda name: rows)
    lines = make_tables.aims_of_blocks().splitlines()
    assert "| at most 16 ms at 1M | 8.00 to 9.50 |" in lines
    assert "| at least 50 at 1M, causal | 104.00 |" in lines
    assert "| times faster than torch, eager | – |" in lines


def test_times_are_compared_where_there_are_two():
    assert make_tables.compared("3", "2", "eager") == "3.00 ms, eager | 2.00 ms | 1.5"
    assert make_tables.compared("", "2", "eager") == "– | 2.00 ms | –"
    assert make_tables.compared("out of memory", "2", "eager") == "out of memory, eager | 2.00 ms | –"


def test_what_the_page_of_compiling_says_of_28_lengths():
    seconds = {row["backend"]: float(row["seconds"]) for row in rows_of("compile.csv")}
    assert all(row["graphs"] == "1" for row in rows_of("compile.csv"))
    assert max(seconds.values()) <= 25  # as the page says


def test_rows_of_a_gpu_are_plotted_and_tabulated():
    row = dict.fromkeys(make_plots.BLOCK_COLUMNS, "") | {
        "device": "H",
        "torch": "2.11",
        "batch": "1",
        "ours_ms": "0.51",
    }
    rows = [
        row | {"mask": mask, "length": str(length), "torch_compiled_ms": "308.4", "torch_eager_ms": "out of memory"}
        for mask in make_plots.COLOURS
        for length in (1 << 17, 1 << 20)
    ]
    # each mask in each style that has a time, and as a label; these styles
    assert len(make_plots.plot(rows).axes[0].lines) == 4 * (2 + 1) + 2
    last = make_plots.blocks_table(rows).splitlines()[-1]
    assert last == "| 1M | 16 documents & causal | 0.51 | out of memory | 308 |"


def test_rows_of_padding_in_the_module_are_plotted_and_tabulated(monkeypatch):
    row = {"device": "H", "torch": "2.11", "width": "1024", "batch": "8", "length": "4096"}
    rows = [
        row
        | {"mode": mode, "contender": contender, "share": share, "real": share, "row_of_full": ours, "gpu_of_full": gpu}
        for mode in ("eager", "compiled")
        for contender in ("full", *make_plots.PACKING)
        for share, ours, gpu in (("0.3", "0.341", "0.322"), ("1.0", "", "1.004"))
    ]
    panels = make_plots.padding_plot(rows).axes
    assert [len(axes.lines) for axes in panels] == [4, 4]
    monkeypatch.setattr(make_tables, "rows_of", lambda name: rows)
    assert (
        make_tables.padding_module().splitlines()[-1]
        == "| 1024, 8 × 4096, compiled | packed by hand | 0.34 (0.32) | – (1.00) |"
    )
    monkeypatch.setattr(make_tables, "rows_of", lambda name: [])
    assert make_tables.padding_module() == ""


def test_the_page_of_measurements_has_every_file_of_rows():
    page = (DOCS / "measured.md").read_text()
    for path in (DOCS.parent / "benchmarks" / "results").glob("*.csv"):
        assert f"(../benchmarks/results/{path.name})" in page, path


def test_the_fastest_of_a_row_is_bold():
    assert make_measured._times(["61.84", "60.6", "OutOfMemoryError", ""]) == ["61.8", "**60.6**", "out of memory", "–"]


def test_a_command_is_named_by_its_program():
    assert make_measured.program_of("torchrun --nproc-per-node 2 benchmarks/a.py --out x") == "benchmarks/a.py"
    assert make_measured.program_of("python -m docs.make_masks") == "docs.make_masks"
