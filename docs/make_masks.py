"""Makes docs/masks.md: every mask with its picture, and how the builder of block masks decides its tiles.

    python -m docs.make_masks

Pictures show ``n`` positions, shares are measured at 2,048 positions in tiles of 128 × 128. Each example is an expression of the
public names and ``n``.
"""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import maskloom as loom
from benchmarks.rows import append

HERE = Path(__file__).parent
ROWS = HERE.parent / "benchmarks" / "results" / "masks.csv"
PICTURED, MEASURED = 24, 2048


@dataclass(frozen=True)
class Example:
    """A mask to show: an expression of ``n`` positions, and the name whose docstring says what it is."""

    expression: str
    name: str = ""

    @property
    def of(self) -> str:
        return self.name or re.match(r"\w+", self.expression.lstrip("~("))[0]  # type: ignore[index]

    def mask(self, n: int) -> loom.Mask:
        return eval(self.expression, {**vars(loom), "n": n, "torch": torch})


FAMILIES: dict[str, list[Example]] = {
    "Relative": [
        Example("causal"),
        Example("anticausal"),
        Example("causal_lower_right(n // 2, n)"),
        Example("window(back=n // 6)"),
        Example("window(back=n // 8, ahead=n // 4)"),
        Example("window_counting_itself(n // 6)"),
        Example("window_reaching_back(n // 6)"),
        Example("window_both_ways(n // 6)"),
        Example("band(-n // 3, -n // 6)"),
        Example("dilated(back=n // 2, step=4)"),
        Example("strided(n // 6)"),
        Example("fixed(n // 4, summary=n // 24)"),
        Example("causal & chunked(n // 3)", "chunked"),
    ],
    "Position": [
        Example("causal | prefix(n // 4)", "prefix"),
        Example("window(back=n // 8) | sinks(n // 12)", "sinks"),
        Example("key_range(n // 4, n // 2)"),
        Example("query_range(n // 4, n // 2)"),
        Example("window_both_ways(n // 12) | global_tokens(n // 12)", "global_tokens"),
        Example("random_blocks(block_size=n // 12, blocks=2, length=n, seed=0)"),
    ],
    "Padding": [
        Example("causal & lengths([2 * n // 3])", "lengths"),
        Example("padding(torch.arange(n)[None] % 7 == 3)"),
        Example("key_padding(torch.arange(n)[None] % 7 == 3)"),
        Example("real(torch.arange(n)[None] > n // 4)"),
    ],
    "Segments": [
        Example("documents(offsets=[0, n // 4, n // 3, n])"),
        Example("causal & documents(torch.arange(n) * 5 // n)", "documents"),
        Example("within(documents(offsets=[0, n // 4, n]), window(back=n // 8) | sinks(n // 12))"),
        Example(
            "documents(offsets=[0, n // 2, n]) & (causal | document_prefix(documents(offsets=[0, n // 2, n]), [n // 6, n // 4]))",
            "document_prefix",
        ),
        Example("shared_prefix(n // 4, [n // 4, n // 4, n // 4])"),
        Example(
            "turns(offsets=[0, n // 3, 2 * n // 3, n], visible=torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool())"
        ),
    ],
    "Moved and arranged": [
        Example("shifted(causal, q_offset=n // 3)"),
        Example("transposed(causal | prefix(n // 4))"),
        Example("per_head([causal, window(back=n // 6)])"),
        Example("per_batch([causal, window(back=n // 6)])"),
        Example("repeat_heads(per_head([causal, window(back=n // 6)]), 2)"),
    ],
    "Grids and video": [
        Example("neighbourhood((n // 8, 8), 3)"),
        Example("grid_window((n // 8, 8), 3)"),
        Example("axial((n // 8, 8), axis=1)"),
        Example("shifted_windows((n // 8, 8), (1, 4), (0, 2))"),
        Example("tiled(grid_window((n // 8, 8), 3), (1, 2))"),
        Example("morton(grid_window((n // 8, 8), 3))"),
        Example("grid_tiles((n // 8, 8), (1, 4), (3, 1))"),
        Example("spatial(4, n // 4, width=n // 6)"),
        Example("temporal(4, n // 4, width=1)"),
    ],
    "Generation": [
        Example("block_diffusion(n // 2, n // 8)"),
        Example("tree([-1] + [node // 2 for node in range(n - 1)])"),
        Example("beams([[-1, -1]] + [[0, step % 2] for step in range(n // 2 - 1)])"),
        Example("mixed_modal(torch.where(torch.arange(n) % (n // 2) < n // 4, torch.arange(n) // (n // 2), -1))"),
        Example("flamingo(torch.arange(n) % (n // 4) == n // 8, tokens_per_media=n // 4)"),
    ],
    "Given": [
        Example("from_dense((torch.arange(n)[:, None] * torch.arange(n)) % 5 == 0)"),
        Example("from_blocks(torch.eye(4).bool(), n // 4)"),
        Example("top_k_blocks([[0, 1], [0, 3], [1, 2], [2, 3]], n // 4)"),
    ],
    "Combined": [
        Example("~causal", "Mask"),
        Example("causal ^ window(back=n // 6)", "Mask"),
        Example("everything"),
        Example("nothing"),
    ],
}


def main() -> None:
    """Write the page and its pictures."""
    for name, example in named().items():
        figure = loom.plot_mask(example.mask(PICTURED), PICTURED, PICTURED, title="", longest=2.0)
        loom.save_figure(figure, HERE / picture_of(name), dpi=110)
    (HERE / "masks.md").write_text(page())
    ROWS.unlink(missing_ok=True)
    for name, example in named().items():
        append(
            ROWS,
            {"mask": name, "expression": example.expression, "positions": MEASURED, "tile": 128, **shares(example)},
        )


def named() -> dict[str, Example]:
    """Every example by a name of its own: the mask's, and a number from the second on."""
    found: dict[str, Example] = {}
    for example in (example for examples in FAMILIES.values() for example in examples):
        before = sum(other.of == example.of for other in found.values())
        found[f"{example.of}-{before + 1}" if before else example.of] = example
    return found


def page() -> str:
    """docs/masks.md."""
    names = {id(example): name for name, example in named().items()}
    parts = [HEAD]
    for family, examples in FAMILIES.items():
        parts.append(f"## {family}\n")
        parts += [section(example, names[id(example)]) for example in examples]
    return "\n".join(parts)


def picture_of(name: str) -> str:
    """Where a picture is, from docs/."""
    return f"pictures/masks/{name}.png"


HEAD = """# The masks

Made by `python -m docs.make_masks`. Pictures show queries down and keys across, dark where the query may attend to the key.
Shares say how the tiles of a block mask were decided, at 2,048 positions in tiles of 128 × 128: by intervals alone, by a few
elements (witnesses), or by all elements ([how](blocks.md); [rows](../benchmarks/results/masks.csv)). All are exact. Every mask combines with every other by `& | ^ ~`.
"""


def section(example: Example, name: str) -> str:
    """One mask: its expression, the first paragraph of its docstring, its source, its picture and its shares."""
    words = inspect.cleandoc(getattr(loom, example.of).__doc__)
    lines = [f"### `{example.expression}`", "", words.split("\n\n")[0].replace("\n", " "), ""]
    source = re.search(r"Source: (.*?)(?:\n\n|\Z)", words, re.DOTALL)
    if source:
        lines += [f"Source: {' '.join(source[1].split())}", ""]
    lines += [f"![{example.of}]({picture_of(name)})", "", in_words(shares(example)), ""]
    return "\n".join(lines)


def shares(example: Example) -> dict[str, str]:
    """How the builder of block masks decides its tiles, in percent."""
    found = loom.explain_block_mask(example.mask(MEASURED), MEASURED, MEASURED)
    assert not found.decided.without_rule, f"{example.expression}: no rule for {found.decided.without_rule}"
    return {f"{way}_percent": f"{found.share(way):.1f}" for way in ("intervals", "witnesses", "evaluation")}


def in_words(percent: dict[str, str]) -> str:
    """The shares as the page says them."""
    said = ", ".join(f"{name.removesuffix('_percent')} {share} %" for name, share in percent.items())
    return f"Tiles decided by {said}."


if __name__ == "__main__":
    main()
