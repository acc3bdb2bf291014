"""Pages that are made from code say what the code says; links and pictures of all pages exist."""

import csv
import importlib
import re
from pathlib import Path

import pytest

from docs import make_backends, make_masks, make_plots, make_tables
from maskloom.attention import backends, reference, sdpa

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


def test_the_code_of_score_mods_runs(capsys):
    exec(code_of("scores.md"), {})
    assert capsys.readouterr().out == "compose(softcap(50.0), alibi(8), prefer_even_keys)\n"


def test_the_code_of_your_own_mask_runs(capsys, tmp_path, monkeypatch):
    code = code_of("your_own_mask.md")
    (tmp_path / "speakers.py").write_text(code)  # a module, so that its classes pickle
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("speakers")
    assert "causal & same_speaker(int64[3, 5])" in capsys.readouterr().out


def test_the_code_of_backends_runs(capsys):
    exec(code_of("backends.md"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "sdpa" and "needs a GPU" in said[1]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
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


def test_backends_stand_in_their_order_and_none_was_wrong():
    names = re.findall(r"^\| `(\w+)`", make_backends.order(), re.MULTILINE)
    assert tuple(names) == backends.BACKENDS == tuple(backends._REASONS)
    verdicts = {row["verdict"].split(":")[0] for row in make_backends.grid()}
    assert verdicts == {"right", "refused"}


def test_what_the_page_of_backends_says_of_bounds_and_speed():
    text = " ".join((DOCS / "backends.md").read_text().split())
    for said in (
        f"up to {sdpa.KEPT_BYTES >> 20} MiB",
        f"of at most {sdpa.CHUNK >> 20} Mi scores",
        f"at most {10 * 4 * reference.CHUNK >> 20} MiB of scores",  # ten tables of them in float32
        f"head dims {' and '.join(map(str, backends._FLASH_HEAD_DIMS))} only",
    ):
        assert said in text, said
    padded = [row for row in rows_of("attention_gpu.csv") if row["section"] == "padded"]
    rows = {(row["shape"].split()[2], row["mask"], row["contender"]): row for row in padded}
    steps = {key: float(row["step_ms"]) for key, row in rows.items()}
    times = [
        steps[shape, "causal & padding", "sdpa, dense mask"] / steps[shape, "causal & padding", "attend, auto"]
        for shape in ("N4096", "N16384")
    ]
    assert f"{times[0]:.1f} times faster at 4k, {times[1]:.1f} times at 16k" in text

    def speeds(shape, contender):
        row = rows[shape, "causal & lengths", contender]
        return " and ".join(f"{float(row[f'{part}_tflops']):.0f}" for part in ("forward", "backward"))

    auto, flash = ([speeds(shape, f"attend, {name}") for shape in ("N4096", "N16384")] for name in ("auto", "flash"))
    assert f'"auto" has {auto[0]}, and {auto[1]}; "flash", by name, {flash[0]}, and {flash[1]}.' in text
    assert f"differ by {flash[0].split()[0]} to {auto[0].split()[0]} for `causal & lengths` at 4k" in text
    same = {}
    for shape, mask, contender in steps:
        if contender == "attend, flash":
            both = steps[shape, mask, contender], steps[shape, mask, "attend, auto"]
            same[shape, mask] = f"{max(both) / min(both) - 1:.0%}".replace("%", " %")
    assert f"but for `window & lengths` at 4k, by {same.pop(('N4096', 'window & lengths'))}." in text
    assert f"differ by {max(same.values(), key=lambda share: int(share.split()[0]))} at most" in text
    for shape in ("N4096", "N16384"):
        packed, varlen, auto = (
            steps[shape, "documents & causal", name]
            for name in ("torch varlen, packed", "attend, varlen", "attend, auto")
        )
        assert auto < packed < varlen
    short = {row["contender"]: float(row["step_ms"]) for row in rows_of("attention_gpu.csv") if "N128 " in row["shape"]}
    assert short["attend, auto"] > max(short["attend, triton"], short["sdpa, dense mask"])
    without, clean = (
        float(row["step_ms"])
        for row in rows_of("attention_gpu.csv")
        if "clean" in row["section"] and "N4096" in row["shape"]
    )
    assert clean / without == pytest.approx(2, abs=0.1)


def test_what_the_page_of_block_masks_says_of_the_gpu():
    text = " ".join((DOCS / "blocks.md").read_text().split())
    rows = rows_of("blocks_gpu.csv")
    ours = {(row["mask"], int(row["length"])): float(row["ours_ms"]) for row in rows}
    assert not any(row["torch_compiled_ms"] for row in rows)
    faster = [float(row["torch_eager_ms"]) / float(row["ours_ms"]) for row in rows if row["torch_eager_ms"]]
    assert {row["length"] for row in rows if row["torch_eager_ms"]} == {"4096", "16384"}
    assert f"{min(faster):.1f} to {max(faster):.1f} times faster at 4k and 16k" in text
    assert max(time for (_, length), time in ours.items() if length == 1 << 20) <= 16
    memory = {(row["mask"], int(row["length"])): float(row["ours_peak_mb"]) / float(row["tables_mb"]) for row in rows}
    assert f"({max(more for (_, length), more in memory.items() if length >= 1 << 17):.2f} at most)" in text
    assert f"(up to {max(memory.values()):.1f}, of few MiB)" in text
    upto_16k = [time for (_, length), time in ours.items() if length <= 1 << 14]
    assert f"at most 1 ms up to 16k | {min(upto_16k):.2f} to {max(upto_16k):.2f} ms" in text
    assert f"at 128k, batch 8 | {ours['causal & padding', 1 << 17]:.2f} ms" in text
    first = [float(row["ours_first_call_ms"]) / 1000 for row in rows if row["ours_first_call_ms"]]
    assert f"at most 1 s | {min(first):.1f} to {max(first):.1f} s" in text
    inexact = {row["length"]: f"{float(row['ours_inexact_ms']):.2f}" for row in rows if row["mask"] == "causal"}
    assert f"takes {inexact['4096']} ms at 4k and {inexact['131072']} at 128k" in text


def test_what_the_page_of_compiling_says_of_28_lengths():
    seconds = {row["backend"]: float(row["seconds"]) for row in rows_of("compile.csv")}
    assert all(row["graphs"] == "1" for row in rows_of("compile.csv"))
    assert seconds["TRITON"] <= 25 < seconds["FLASH"]  # as the page says


def test_rows_of_a_gpu_are_plotted_and_tabulated():
    row = dict.fromkeys(make_plots.GPU_COLUMNS, "") | {"device": "H", "torch": "2.11", "batch": "1", "ours_ms": "0.51"}
    rows = [
        row | {"mask": mask, "length": str(length), "torch_compiled_ms": "308.4", "torch_eager_ms": "out of memory"}
        for mask in make_plots.COLOURS
        for length in (1 << 17, 1 << 20)
    ]
    # each mask in each style that has a time, and as a label; these styles
    assert len(make_plots.plot(rows).axes[0].lines) == 4 * (2 + 1) + 2
    last = make_plots.gpu_table(rows).splitlines()[-1]
    assert last == "| 1M | 16 documents & causal | 0.51 | out of memory | 308 |"
