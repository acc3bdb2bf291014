"""The tables of docs/backends.md and docs/notes/backends.md: the rule that chooses, what was tried, what attention takes on a GPU.

`docs.make_tables` puts them into the pages. Rows are those of benchmarks/grid.py and benchmarks/attention_gpu.py.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from docs.make_plots import Row, rows_of
from maskloom.attention.backends import choose
from maskloom.attention.backends.flash_limits import LIMITS

AXES = {
    "mask": "masks",
    "dtype": "dtypes",
    "heads": "query / key heads",
    "head_dim": "head dims",
    "lengths": "queries × keys",
    "lse": "log-sum-exp",
}
IN_WORDS = {"False": "without", "True": "with"}

FLEX = "flex_attention"
NOT_YET = "That was not measured yet."
OLDER_FORWARD = """**Read the forward columns with care.** These rows are older than the way of measuring described here: on that machine the
host was often slower than the kernel, which shows in the times forward, and contenders were measured one after another
while the GPU's clock moved. "flash" and "auto" are one kernel there. Steps are what can be compared."""
OLDER_SHORT = 'When these rows were made, "auto" took flash at 128 positions.'

Rows = dict[tuple[str, str, str], Row]
"""By shape, mask and contender."""


def order() -> str:
    """What each backend is, where "auto" chooses it, and what `explain` says of it."""
    lines = ['backend | what it is | where "auto" chooses it | `explain` says']
    lines += [f"`{it.name}` | {it.what} | {it.where} | {it.why}" for it in choose.BACKENDS.values()]
    return table(lines)


def tried() -> str:
    """What was tried along each axis, one at a time from the base case."""
    rows = grid()
    base = "`documents & causal` for varlen, `causal & lengths` for the others, bfloat16, 4/2 heads, head dim 64"
    lines = [f"{title} | {listed(unique(row[axis] for row in rows))}" for axis, title in AXES.items()]
    return table(["varied | tried", *lines, f"where another is varied | {base}"])


def right() -> str:
    """Where each backend gave right results, and how far from the truth it was where it was furthest."""
    rows = grid()
    head = ["backend", *AXES.values(), "rows right", "error ÷ plain, most", "from 127 positions on"]
    lines = []
    for name in choose.BACKENDS:
        ours = [row for row in rows if row["backend"] == name]
        if not ours:  # of the grid's 127 positions and more, which are too many queries for it
            continue
        good = [row for row in ours if row["verdict"] == "right"]
        cells = [of_all(*(unique(row[axis] for row in some) for some in (rows, ours, good))) for axis in AXES]
        cells += [f"{len(good)} of {len(ours)}", most(good), most(row for row in good if is_long(row))]
        lines.append(f"`{name}` | {' | '.join(cells)}")
    return table([" | ".join(head), *lines])


def refused() -> str:
    """What each backend refuses, in its words, and how many rows say so."""
    reasons = Counter((row["backend"], reason_of(row)) for row in grid() if row["verdict"] != "right")
    lines = [f"`{name}` | {reason} | {count}" for (name, reason), count in reasons.items()]
    return table(["backend | why | rows", *sorted(lines, key=lambda line: place_of(line))])


def attention() -> str:
    """Attention on padded batches: useful TFLOP/s forward and backward, and milliseconds of a step."""
    rows = measured("padded")
    columns = [f"{name}, N={length_of(shape)}" for shape in shapes(rows) for name in ("forward", "backward", "step ms")]
    lines = [" | ".join(["mask", "", *columns])]
    for mask, contender in dict.fromkeys((mask, contender) for _, mask, contender in rows):
        found = [rows.get((shape, mask, contender)) for shape in shapes(rows)]
        cells = [
            cell(row, name, digits)
            for row in found
            for name, digits in (("forward_tflops", 0), ("backward_tflops", 0), ("step_ms", 2))
        ]
        lines.append(" | ".join([mask, f"`{contender}`", *cells]))
    return table(lines) + older(rows, OLDER_FORWARD)


def beside_torch() -> str:
    """Milliseconds of a step, for each mask and each way of torch's own: that way, and `attend` as "auto" runs it."""
    rows = measured("padded")
    columns = [f"{who}, N={length_of(shape)}" for shape in shapes(rows) for who in ("torch", "attend")]
    lines = [" | ".join(["mask", "with torch", *columns])]
    for mask, contender in dict.fromkeys((mask, contender) for _, mask, contender in rows):
        if not contender.startswith("attend"):
            keys = [(shape, mask, name) for shape in shapes(rows) for name in (contender, "attend, auto")]
            lines.append(" | ".join([mask, f"`{contender}`", *(cell(rows.get(key), "step_ms", 2) for key in keys)]))
    return table(lines)


def host() -> str:
    """Milliseconds of the GPU and of the host, where torch's own FlexAttention was measured beside `attend`."""
    rows = measured("padded")
    works = {(shape, mask) for shape, mask, contender in rows if contender.startswith(FLEX)}
    if not works:
        return NOT_YET
    parts = {
        "forward": "forward",
        "backward": "backward",
        "host_forward": "host, forward",
        "host_backward": "host, backward",
    }
    lines = [" | ".join(["rows", "mask", "", *parts.values(), "step"])]
    for (shape, mask, contender), row in rows.items():
        if (shape, mask) in works and contender.startswith((FLEX, "attend")):
            batch = f"{batch_of(shape)} rows of {length_of(shape)}"
            times = [cell(row, f"{part}_ms", 2) for part in (*parts, "step")]
            lines.append(" | ".join([batch, mask, f"`{contender}`", *times]))
    return table(lines)


def aims() -> str:
    """What was aimed at on padded batches, and what came of it."""
    rows = measured("padded")
    lines = [" | ".join(["aim", *(f"N={length_of(shape)}" for shape in shapes(rows))])]
    for what, of in AIMS.items():
        lines.append(" | ".join([what, *(of(rows, shape) for shape in shapes(rows))]))
    return table(lines)


def step_time(row: Row | None) -> float | None:
    """Milliseconds of a step by the wall, where one was measured."""
    return float(row["step_ms"]) if row and row["step_ms"] else None


def gpu_time(row: Row | None) -> float | None:
    """Milliseconds of a forward and a backward by the GPU's own clock, where both were measured."""
    return float(row["forward_ms"]) + float(row["backward_ms"]) if row and row["backward_ms"] else None


def times_faster(mask: str, of: Callable[[Row | None], float | None]) -> Callable[[Rows, str], str]:
    """How many times faster "auto" is, for a mask, than SDPA with a dense table for the same visible pairs."""

    def ratio(rows: Rows, shape: str) -> str:
        dense, auto = (
            of(rows.get((shape, "causal & padding", "sdpa, dense mask"))),
            of(rows.get((shape, mask, "attend, auto"))),
        )
        return "–" if dense is None or auto is None else f"{dense / auto:.1f}"

    return ratio


def speed(part: str) -> Callable[[Rows, str], str]:
    """The speed of "auto" in one direction."""
    return lambda rows, shape: cell(rows.get((shape, "causal & lengths", "attend, auto")), f"{part}_tflops", 0)


def of_best(rows: Rows, shape: str) -> str:
    """The least time of all contenders by that of "auto", for the mask where that is least, and whose it is."""
    shares = []
    for mask in dict.fromkeys(mask for _, mask, _ in rows):
        times = {key[2]: gpu_time(row) for key, row in rows.items() if key[:2] == (shape, mask)}
        best = min(((time, name) for name, time in times.items() if time is not None), default=None)
        auto = times.get("attend, auto")
        if best is not None and auto is not None:
            shares.append((best[0] / auto, mask, best[1]))
    if not shares:
        return "–"
    share, mask, fastest = min(shares)
    return f"{100 * share:.1f} % (`{mask}`, `{fastest}`)"


def added(rows: Rows, shape: str) -> str:
    """By how much `attend` takes more of the GPU's time than torch's own FlexAttention on the same kernel."""
    more = []
    for name in ("triton", "flash"):
        both = [rows.get((shape, "causal & lengths", f"{way}, {name}")) for way in ("attend", FLEX)]
        times = [time for time in map(gpu_time, both) if time is not None]
        if len(times) == 2:
            more.append(f"{name} {round(times[0] / times[1] - 1, 3) + 0.0:.1%}".replace("%", " %"))
    return ", ".join(more) or "–"


def short() -> str:
    """Steps of batches of 32 Ki positions in short rows, in milliseconds."""
    rows = measured("short")
    lines = [" | ".join(["", *(f"{batch_of(shape)} rows of {length_of(shape)}" for shape in shapes(rows))])]
    for contender in dict.fromkeys(contender for _, _, contender in rows):
        steps = [cell(rows.get((shape, "causal & lengths", contender)), "step_ms", 2) for shape in shapes(rows)]
        lines.append(" | ".join([f"`{contender}`", *steps]))
    return table(lines) + older(rows, OLDER_SHORT)


def simplified() -> str:
    """A mask as it is given and as `simplify` has it, in milliseconds."""
    return by_rows("simplify")


def from_tables() -> str:
    """Masks that are tables of queries and keys, in milliseconds."""
    return by_rows("table")


def by_rows(section: str) -> str:
    """Milliseconds of each contender, for each shape and mask of a section."""
    rows = measured(section)
    if not rows:
        return NOT_YET
    parts = ("forward", "backward", "step")
    lines = [" | ".join(["rows", "mask", "", *(f"{part} ms" for part in parts)])]
    for (shape, mask, contender), row in rows.items():
        times = [cell(row, f"{part}_ms", 2) for part in parts]
        lines.append(" | ".join([f"{batch_of(shape)} rows of {length_of(shape)}", mask, f"`{contender}`", *times]))
    return table(lines)


def clean() -> str:
    """What `clean_padding` costs, where it was measured with and without."""
    rows = measured("clean")
    lines = ["rows | | forward ms | backward ms | step ms | times as long"]
    for (shape, mask, contender), row in rows.items():
        without, clean = (step(rows, shape, mask, f"attend, clean_padding={way}") for way in (False, True))
        if without is not None and clean is not None:
            times = " | ".join(cell(row, f"{part}_ms", 2) for part in ("forward", "backward", "step"))
            batch = f"{batch_of(shape)} rows of {length_of(shape)}"
            lines.append(f"{batch} | `{contender}` | {times} | {float(row['step_ms']) / without:.2f}")
    return table(lines)


GUIDE = {"order": order, "beside_torch": beside_torch, "short": short}
"""Of docs/backends.md."""


def decoding() -> str:
    """GPU milliseconds of one step of decoding, by batch, cache and queries, and of `attend` with half the cache written."""
    rows = {
        (row["batch"], row["cache"], row["queries"], row["filled"], row["contender"]): row
        for row in rows_of("decoding")
    }
    ways = ["attend", "sdpa, ready mask", "sdpa, folded, ready mask", "flex, compiled, ready block mask"]
    lines = [" | ".join(["batch, cache, queries", *ways, "attend ÷ best of the others", "attend, half written"])]
    for batch, cache, queries in dict.fromkeys(key[:3] for key in rows):
        found = [rows[batch, cache, queries, "1.0", way] for way in ways]
        half = rows[batch, cache, queries, "0.5", "attend"]
        cells = [f"{float(row['gpu_ms']):.3f}" for row in (*found, half)]
        times = f"{float(found[0]['of_best']):.2f}"
        lines.append(" | ".join([f"{batch}, {int(cache):,}, {queries}", *cells[:-1], times, cells[-1]]))
    return table(lines)


def cpu_scores() -> str:
    """Steps on the CPU beside torch's own attention with a ready float mask, before and after."""
    rows = {(row["mask"], row["contender"], row["state"]): row for row in rows_of("cpu_scores")}
    lines = ["mask |  | runs on | before, times SDPA | now, times SDPA | now, ms | now, MiB"]
    for (mask, contender, state), row in rows.items():
        if state == "after":
            before = rows.get((mask, contender, "before"), {}).get("to_sdpa", "–")
            cells = [row["backend"], before, row["to_sdpa"], row["step_ms"], row["peak_mib"]]
            lines.append(f"{mask} | {contender} | {' | '.join(cells)}")
    return table(lines)


def flash_limits() -> str:
    """What FLASH cannot do in some versions, and on some GPUs."""
    lines = ["where | what is refused | source | "]
    lines += [f"{it.where} | {it.words} | {it.source} | {'' if it.ran else 'read, not run'}" for it in LIMITS]
    return table(lines)


def flash_or_triton() -> str:
    """A forward and backward by each, from little work to much."""
    rows = {
        (row["mask"], row["work"], row["batch"], row["length"], row["head_dim"], row["backend"]): row
        for row in rows_of("flash_or_triton")
    }
    lines = ["mask | rows | head dim | B·H·Q·K·D | triton, alone | its GPU time | flash, alone | its GPU time"]
    for mask, work, batch, length, head_dim in dict.fromkeys(key[:-1] for key in rows):
        both = [rows[mask, work, batch, length, head_dim, name] for name in ("triton", "flash")]
        times = [f"{float(row[name]):.2f}" for row in both for name in ("ms", "gpu_ms")]
        lines.append(f"`{mask}` | {batch} × {length} | {head_dim} | 2^{float(work):.0f} | " + " | ".join(times))
    return table(lines)


def fused_projection() -> str:
    """Attention over parts of one projection beside attention over tensors of their own."""
    rows = {(row["mask"], row["contender"], row["layout"]): row for row in rows_of("fused_projection")}
    layouts = list(dict.fromkeys(layout for *_, layout in rows))
    heads = [f"{layout}: {clock}" for layout in layouts for clock in ("forward", "both")]
    lines = [" | ".join(["mask", "rows", "", *heads])]
    for mask, contender in dict.fromkeys(key[:2] for key in rows):
        found = [rows[mask, contender, layout] for layout in layouts]
        times = [f"{float(row[clock]):.2f}" for row in found for clock in ("forward_ms", "ms")]
        lines.append(" | ".join([f"`{mask}`", f"{found[0]['batch']} × {found[0]['length']}", contender, *times]))
    return table(lines)


NOTES = {
    "cpu_scores": cpu_scores,
    "fused_projection": fused_projection,
    "flash_or_triton": flash_or_triton,
    "flash_limits": flash_limits,
    "decoding": decoding,
    "tried": tried,
    "right": right,
    "refused": refused,
    "attention_gpu": attention,
    "host": host,
    "aims": aims,
    "simplified": simplified,
    "from_tables": from_tables,
    "clean": clean,
}
"""Of docs/notes/backends.md."""

AIMS: dict[str, Callable[[Rows, str], str]] = {
    "times faster than SDPA with a dense mask, `causal & lengths`: 5 at 4k, 8 at 16k": times_faster(
        "causal & lengths", gpu_time
    ),
    "the same, `causal & padding`": times_faster("causal & padding", gpu_time),
    "the same, by steps": times_faster("causal & padding", step_time),
    'TFLOP/s forward, `causal & lengths`, "auto": 480 at 4k, 605 at 16k': speed("forward"),
    "the same backward: 410 and 540": speed("backward"),
    '"auto" has at least 97 % of the speed of the fastest, for every mask; the least': of_best,
    "`attend` adds at most 2 % to torch's own FlexAttention, `causal & lengths`": added,
}


def measured(section: str) -> Rows:
    """The rows of a section by shape, mask and contender, short ones first; of rows measured again, the last."""
    rows = {
        (row["shape"], row["mask"], row["contender"]): row
        for row in rows_of("attention_gpu")
        if row["section"] == section
    }
    return dict(sorted(rows.items(), key=lambda item: positions(item[0][0])))


def shapes(rows: Rows) -> list[str]:
    """The shapes that there are rows of."""
    return list(dict.fromkeys(shape for shape, _, _ in rows))


def step(rows: Rows, shape: str, mask: str, contender: str) -> float | None:
    """Milliseconds of a step; None where it has none."""
    return step_time(rows.get((shape, mask, contender)))


def cell(row: Row | None, name: str, digits: int) -> str:
    """A number with so many digits; "–" where there is none."""
    return f"{float(row[name]):.{digits}f}" if row and row.get(name) else "–"


def older(rows: Rows, words: str) -> str:
    """What to say of rows from before the host was measured by itself."""
    return f"\n\n{words}" if any("host_forward_ms" not in row for row in rows.values()) else ""


def grid() -> list[Row]:
    """The rows of grid.csv, backends in their order, with both lengths in one cell."""
    rows = sorted(rows_of("grid"), key=lambda row: list(choose.BACKENDS).index(row["backend"]))
    return [row | {"lengths": f"{row['queries']}×{row['keys']}", "lse": IN_WORDS[row["lse"]]} for row in rows]


def reason_of(row: Row) -> str:
    """Why a backend refused, without the sizes that it got."""
    return row["verdict"].removeprefix("refused: ").split("; got ")[0].split("; the tensors are ")[0]


def most(rows: Iterable[Row]) -> str:
    """The largest error relative to the plain reference's."""
    ratios = [float(row["error_to_plain"]) for row in rows if row["error_to_plain"]]
    return f"{max(ratios):.2f}" if ratios else "–"


def is_long(row: Row) -> bool:
    """Whether a row has enough positions for its error to be a mean over many."""
    return min(int(row["queries"]), int(row["keys"])) >= 127


def place_of(line: str) -> tuple[int, int]:
    """The order of the backends, then the reasons that most rows give."""
    name, *_, count = line.split(" | ")
    return [*map(str, choose.BACKENDS)].index(name.strip("`")), -int(count)


def of_all(every: list[str], tried: list[str], good: list[str]) -> str:
    """Which of all values were right for a backend, in as few words as say it, and which it was not tried with."""
    missing = [value for value in tried if value not in good]
    words = listed(good) if len(missing) >= len(good) else f"all but {listed(missing)}" if missing else "all"
    left_out = [value for value in every if value not in tried]
    return f"{words}; not tried: {listed(left_out)}" if left_out else words


def unique(values: Iterable[str]) -> list[str]:
    """Each value once; numbers by size, types by name."""
    found = list(dict.fromkeys(values))
    if all(re.match(r"\d", value) for value in found):
        return sorted(found, key=lambda value: [int(number) for number in re.findall(r"\d+", value)])
    return sorted(found) if "float16" in found else found


def listed(values: list[str]) -> str:
    """Values in a cell of a table, masks as code."""
    return ", ".join(f"`{value}`" if "&" in value else value for value in values).replace("|", "\\|")


def batch_of(shape: str) -> str:
    """The batch size in a shape such as B8 H16 N4096 D128."""
    return re.findall(r"B(\d+)", shape)[0]


def positions(shape: str) -> int:
    """The length in such a shape."""
    return int(re.findall(r"N(\d+)", shape)[0])


def length_of(shape: str) -> str:
    """The length in such a shape, from 4k on in Ki."""
    length = positions(shape)
    return f"{length >> 10}k" if length >= 4096 else str(length)


def table(lines: list[str]) -> str:
    """A table in Markdown from its lines, the head first."""
    head, *rows = lines
    rule = "|".join(["---"] * (head.count("|") + 1))
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {row} |" for row in rows)])
