"""The tables of docs/backends.md: the rule that chooses, what each backend was tried at, and what attention takes on a GPU.

`docs.make_tables` puts them into the page. Rows are those of benchmarks/grid.py and benchmarks/attention_gpu.py.
"""

import re
from collections import Counter
from collections.abc import Iterable

from docs.make_plots import Row, rows_of
from maskloom.attention import backends

AXES = {
    "mask": "masks",
    "dtype": "dtypes",
    "heads": "query / key heads",
    "head_dim": "head dims",
    "lengths": "queries × keys",
    "lse": "log-sum-exp",
}
IN_WORDS = {"False": "without", "True": "with"}
NOT_BY_NAME = "Expected TensorSSA"
"""What flash-attn's compiler said of a table that it cannot read, before such masks were refused."""


def order() -> str:
    """The rule at the top of attention/backends.py, and what `explain` says of each."""
    lines = [line.strip(" |").split("|") for line in (backends.__doc__ or "").splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in line] for line in lines]
    said = [f"`{name}` | {what} | {where} | {backends._REASONS[name]}" for name, what, where in rows]  # type: ignore[index]
    return table([" | ".join([*head, "`explain` says"]), *said])


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
    for name in backends.BACKENDS:
        ours = [row for row in rows if row["backend"] == name]
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
    rows = [row for row in rows_of("attention_gpu") if row["section"] == "padded"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    columns = [f"{name}, N={length_of(shape)}" for shape in shapes for name in ("forward", "backward", "step ms")]
    lines = [" | ".join(["mask", "", *columns])]
    for mask, contender in dict.fromkeys((row["mask"], row["contender"]) for row in rows):
        found = [row for row in rows if (row["mask"], row["contender"]) == (mask, contender)]
        cells = [
            f"{float(row['forward_tflops']):.0f} | {float(row['backward_tflops']):.0f} | {float(row['step_ms']):.2f}"
            for row in found
        ]
        lines.append(" | ".join([mask, f"`{contender}`", *cells]))
    return table(lines)


def short() -> str:
    """Steps of batches of 32 Ki positions in short rows, in milliseconds."""
    rows = [row for row in rows_of("attention_gpu") if row["section"] == "short"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    lines = [" | ".join(["", *(f"{batch_of(shape)} rows of {length_of(shape)}" for shape in shapes)])]
    for contender in dict.fromkeys(row["contender"] for row in rows):
        steps = [f"{float(row['step_ms']):.2f}" for row in rows if row["contender"] == contender]
        lines.append(" | ".join([f"`{contender}`", *steps]))
    return table(lines)


def clean() -> str:
    """What `clean_padding` costs, where it was measured with and without."""
    rows = [row for row in rows_of("attention_gpu") if row["section"] == "clean"]
    lines = ["rows | | forward ms | backward ms | step ms"]
    for row in rows:
        if sum(other["shape"] == row["shape"] for other in rows) == 2:
            times = " | ".join(f"{float(row[f'{part}_ms']):.2f}" for part in ("forward", "backward", "step"))
            batch = f"{batch_of(row['shape'])} rows of {length_of(row['shape'])}"
            lines.append(f"{batch} | `{row['contender']}` | {times}")
    return table(lines)


TABLES = {
    "order": order,
    "tried": tried,
    "right": right,
    "refused": refused,
    "attention_gpu": attention,
    "short": short,
    "clean": clean,
}


def grid() -> list[Row]:
    """The rows of grid.csv, backends in their order, with both lengths in one cell."""
    rows = sorted(rows_of("grid"), key=lambda row: backends.BACKENDS.index(row["backend"]))
    return [row | {"lengths": f"{row['queries']}×{row['keys']}", "lse": IN_WORDS[row["lse"]]} for row in rows]


def reason_of(row: Row) -> str:
    """Why a backend refused, without the sizes that it got."""
    reason = row["verdict"].removeprefix("refused: ").split("; got ")[0].split("; the tensors are ")[0]
    if reason.startswith(NOT_BY_NAME):
        return f"a table read by head, query and key (`{reason}`, said flash-attn's compiler; refused by name since)"
    return reason


def most(rows: Iterable[Row]) -> str:
    """The largest error relative to the plain reference's."""
    ratios = [float(row["error_to_plain"]) for row in rows if row["error_to_plain"]]
    return f"{max(ratios):.2f}"


def is_long(row: Row) -> bool:
    """Whether a row has enough positions for its error to be a mean over many."""
    return min(int(row["queries"]), int(row["keys"])) >= 127


def place_of(line: str) -> tuple[int, int]:
    """The order of the backends, then the reasons that most rows give."""
    name, *_, count = line.split(" | ")
    return backends.BACKENDS.index(name.strip("`")), -int(count)


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


def length_of(shape: str) -> str:
    """The length in such a shape, from 4k on in Ki."""
    length = int(re.findall(r"N(\d+)", shape)[0])
    return f"{length >> 10}k" if length >= 4096 else str(length)


def table(lines: list[str]) -> str:
    """A table in Markdown from its lines, the head first."""
    head, *rows = lines
    rule = "|".join(["---"] * (head.count("|") + 1))
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {row} |" for row in rows)])
