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
from docs.make_mask_pictures import drawn, glance, quoted
from maskloom.testing import public_names

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
        return eval(self.expression, {**public_names(), "n": n, "torch": torch})


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
        Example("fixed(n // 4, summary=n // 24, part=[0, 1, 2])"),
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
        Example("documents(offsets=[0, n // 4, n], kv_offsets=[0, n // 2, n])"),
        Example("documents_lower_right([0, n // 4, n // 2], [0, n // 3, n], length=n)"),
        Example("within(documents(offsets=[0, n // 4, n]), window(back=n // 8) | sinks(n // 12))"),
        Example(
            "within(documents(offsets=[0, n // 3, n]), per_document([causal, window(back=n // 8)]))", "per_document"
        ),
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
        Example("neighbourhood((n // 8, 8), (1, 4), stride=(1, 2))"),
        Example("neighbourhood((n // 8, 8), (2, 3), causal=(True, False))"),
        Example("grid_window((n // 8, 8), 3)"),
        Example("grid_window((n // 8, 8), (3, 4), stride=(1, 2))"),
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
        Example("block_diffusion(block_size=n // 12, documents=documents(offsets=[0, n // 8, n // 2]))"),
        Example("block_diffusion(block_size=n // 12, documents=documents(offsets=[0, n // 8, n // 2]), paired=True)"),
        Example("tree([-1] + [node // 2 for node in range(n - 1)])"),
        Example("beams([[-1, -1]] + [[0, step % 2] for step in range(n // 2 - 1)])"),
        Example("mixed_modal(torch.where(torch.arange(n) % (n // 2) < n // 4, torch.arange(n) // (n // 2), -1))"),
        Example("flamingo(torch.arange(n) % (n // 4) == n // 8, tokens_per_media=n // 4)"),
        Example("flamingo(torch.arange(n) % (n // 4) == n // 8, tokens_per_media=n // 4, all_before=True)"),
    ],
    "Given": [
        Example("from_dense((torch.arange(n)[:, None] * torch.arange(n)) % 5 == 0)"),
        Example("from_blocks(torch.eye(4).bool(), n // 4)"),
        Example("top_k_blocks([[0, 1], [0, 3], [1, 2], [2, 3]], n // 4)"),
        Example("from_edges(torch.arange(n), torch.arange(n) * 5 % n)"),
    ],
    "Combined": [
        Example("~causal", "Mask"),
        Example("causal ^ window(back=n // 6)", "Mask"),
        Example("everything"),
        Example("nothing"),
    ],
}


@dataclass(frozen=True)
class Recipe:
    """A mask that published code builds, in these masks: an expression, and what its names are."""

    of: str
    expression: str
    words: str


RECIPES = [
    Recipe(
        "Llama 4, packed",
        "within(documents(offsets=offsets), causal & chunked(n))",
        "`n` is its `attention_chunk_size`",
    ),
    Recipe(
        "Llama 4, padding on the left",
        "shifted(causal & chunked(n), q_offset=-left, kv_offset=-left) & real(is_real)",
        "`left` (B,) is the number of padded positions; `causal & chunked(n) & real(is_real)` alone would count chunks from the first padded position",
    ),
    Recipe(
        "Gemma 3, sliding layers",
        "mixed_modal(ids) & window(back=w - 1, ahead=length)",
        "`w` is its `sliding_window`: keys up to the query, and keys of its image, as far as they are in the window (transformers since #46850)",
    ),
    Recipe(
        "Gemma 3, sliding layers before",
        "window_counting_itself(w) | documents(ids)",
        "keys in the window, and all keys of the query's image, however long it is",
    ),
    Recipe(
        "StreamingLLM, `evict_for_space`",
        "window(back=recent - 1) | sinks(n)",
        "a cache of `n + recent` keys, cut before the query's own key is added",
    ),
    Recipe("StreamingLLM, evaluation", "window(back=recent) | sinks(n)", "the same cache, cut after each step"),
    Recipe(
        "Sparse Transformer's code, near",
        "window_counting_itself(stride)",
        "called `local` there; the paper has one key more, `strided(stride, factor=1)`",
    ),
    Recipe("Sparse Transformer's code, far", "strided(stride, factor=2)", "called `strided` there, as in the paper"),
    Recipe(
        "Sparse Transformer's code, fixed",
        "fixed(stride, summary=c, part=torch.arange(heads) % parts)",
        "`stride`, `c` and `parts` are `local_attn_ctx`, `vertsize` (in blocks there) and `num_verts`",
    ),
    Recipe(
        "BigBird's code",
        "top_k_blocks(blocks, size) | global_tokens([*range(size), *range(length - size, length)])",
        "for each block of queries `blocks` lists the three blocks around it and its random blocks, which are none of those three, nor the first or last block",
    ),
    Recipe(
        "Swin",
        "shifted_windows(shape, min(w, *shape), 0 if min(shape) <= w else w // 2)",
        "its shifted layers; the other layers have no shift",
    ),
    Recipe(
        "Video Swin",
        "shifted_windows(shape, [min(w, size) for size in shape], [0 if size <= w else w // 2 for size in shape])",
        "the same, with window and shift for each axis",
    ),
    Recipe(
        "HaloNet",
        "grid_window(shape, block + 2 * halo, stride=block)",
        "a block of queries sees itself and a halo around it",
    ),
    Recipe(
        "Sparse VideoGen's code, temporal",
        "spatial(frame_size, frames, width=width, prompt=prompt)",
        "for tokens sorted by place; for tokens sorted by frame, and windows of whole places, it is `temporal`",
    ),
    Recipe("CausVid, Self-Forcing", "causal | chunked(n)", "a query sees all frames up to the end of its own chunk"),
    Recipe(
        "EAGLE-3, training",
        "causal | dilated(back=0, ahead=kv_len, step=q_len)",
        "the keys of the sequence come first, then as many keys for each later step; of these a query sees the ones at its own position",
    ),
    Recipe(
        "Tree verification over a cache",
        "shifted(tree(parents, prefix=lens), q_offset=lens)",
        "`lens` (B,) is the number of cached keys of each row, and so the position of its first node",
    ),
    Recipe(
        "BD3-LM, packed",
        "block_diffusion(block_size=n, documents=documents(offsets=offsets))",
        "all noised documents, then all clean ones; with `paired=True` each noised one beside its clean one, as in SDAR's training",
    ),
]
"""Masks of published code. Each has a plain loop in tests/masks/test_recipes.py."""


def main() -> None:
    """Write the page and its pictures."""
    for name, example in named().items():
        (HERE / picture_of(name)).write_text(picture(example))
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
        parts += [f"## {family}\n", glance({picture_of(names[id(one)]): one.expression for one in examples})]
        parts += [section(example, names[id(example)]) for example in examples]
    return "\n".join([*parts, recipes()])


def recipes() -> str:
    """The masks of published code, as a table."""
    lines = ["## Recipes", "", "Masks that published code builds. A test compares each with a plain loop.", ""]
    lines += ["| | mask | |", "|---|---|---|"]
    lines += [f"| {one.of} | `{one.expression.replace('|', chr(92) + '|')}` | {one.words} |" for one in RECIPES]
    return "\n".join([*lines, ""])


def picture_of(name: str) -> str:
    """Where a picture is, from docs/."""
    return f"pictures/masks/{name}.svg"


def picture(example: Example) -> str:
    """The picture of a mask, as SVG."""
    return drawn(example.mask(PICTURED).dense(PICTURED, PICTURED), quoted(example.expression))


HEAD = """# The masks

Every mask, drawn. They combine with one another by `& | ^ ~`. [Which mask is mine?](which_mask.md) goes the other way, from what you
hold to the mask.

In the pictures each row is a query and each column a key, of n = 24 positions; a blue cell means that the query may attend to the
key. Under each picture stands how the tiles of its block mask were decided, at 2,048 positions in tiles of 128 × 128: by intervals alone, by a
few elements (witnesses), or by all elements (evaluation). All tables are exact ([how](notes/blocks.md#one-run-then-intervals); [rows](../benchmarks/results/masks.csv)).
"""


def section(example: Example, name: str) -> str:
    """One mask: its expression, what it is, its source, its picture and its shares."""
    words, source = words_of(example)
    lines = [f"### `{example.expression}`", "", words, ""]
    lines += [f"Source: {source}", ""] if source else []
    lines += [f"![{example.of}]({picture_of(name)})", "", in_words(shares(example)), ""]
    return "\n".join(lines)


def words_of(example: Example) -> tuple[str, str]:
    """The first paragraph of the docstring, and the source that it names, if any."""
    words = inspect.cleandoc(public_names()[example.of].__doc__ or "")
    source = re.search(r"Source: (.*?)(?:\n\n|\Z)", words, re.DOTALL)
    return words.split("\n\n")[0].replace("\n", " "), " ".join(source[1].split()) if source else ""


def shares(example: Example) -> dict[str, str]:
    """How the builder of block masks decides its tiles, in percent."""
    found = loom.blocks.explain_block_mask(example.mask(MEASURED), MEASURED, MEASURED)
    assert not found.decided.unsupported_ops, f"{example.expression}: no rule for {found.decided.unsupported_ops}"
    return {f"{way}_percent": f"{found.share(way):.1f}" for way in ("intervals", "witnesses", "evaluation")}


def in_words(percent: dict[str, str]) -> str:
    """The shares as the page says them."""
    said = ", ".join(f"{name.removesuffix('_percent')} {share} %" for name, share in percent.items())
    return f"Tiles decided by {said}."


if __name__ == "__main__":
    main()
