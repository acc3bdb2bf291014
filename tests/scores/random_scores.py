"""Random score mods as lines of code, which read learned tensors in every way that a person might write."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

B, H, Q, K = 2, 3, 5, 7
TABLES = {"t1": (13,), "t2": (3, 11), "t3": (2, 5, 7), "t4": (2, 3, 5, 7)}
LAYERS = {
    "line": lambda: torch.nn.Linear(1, 5),
    "plane": lambda: torch.nn.Linear(2, 3, bias=False),
    "embed": lambda: torch.nn.Embedding(13, 3),
}
IDX, BITS = torch.tensor([1, 0, -1]), torch.tensor([True, False, True, True, False])
NUMBERS = ["b", "h", "i", "j", "i - j", "3 * i + j", "h + 2 * j", "(i - j).abs()", "torch.where(i > j, b, h)"]
SOURCES = [
    *TABLES,
    "embed((i - j).abs())",
    "embed(h)",
    "line((i - j).double()[None])",
    "line(score[None])",
    "plane(torch.stack([score, i.double()]))",
    "torch.stack([score, 2 * score, score.sin()])",
    "F.embedding(i % 3, t2)",
    "torch.cat([t1, t2[h]])",
    "F.pad(t1, (1, 2))",
    "t2.T",
    "t4.permute(2, 3, 0, 1)",
]
ANSWERS = [
    "score + ({})",
    "score * ({})",
    "({}) - score.tanh()",
    "torch.where(i >= j, score, {})",
    "torch.stack([score, {}])[h % 2]",
    "torch.stack([score, 3 * score * ({})])[1]",
    "torch.lerp(score, {}, 0.3)",
]


def learned() -> dict[str, object]:
    """The tensors and layers that the code names, in float64, the same ones at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tables = {name: torch.randn(shape, dtype=torch.float64).requires_grad_() for name, shape in TABLES.items()}
        return {**tables, **{name: make().double() for name, make in LAYERS.items()}}


def leaves(held: dict[str, object]) -> list[Tensor]:
    """All of them that learn."""
    return [
        leaf for value in held.values() for leaf in ([value] if isinstance(value, Tensor) else [*value.parameters()])
    ]


@dataclass(frozen=True)
class Code:
    """A score_mod as the line of code that it is."""

    text: str

    def __call__(self, held, score, b, h, i, j):
        names = {"torch": torch, "F": F, "IDX": IDX, "BITS": BITS, **held}
        return eval(self.text, names | {"score": score, "b": b, "h": h, "i": i, "j": j})

    def bound(self, held):
        return lambda score, b, h, i, j: self(held, score, b, h, i, j)


@st.composite
def score_codes(draw) -> Code:
    """A score that one or two reads of learned tensors change."""
    reads = [draw(reads_of_learned()) for _ in range(draw(st.integers(1, 2)))]
    text = draw(st.sampled_from(ANSWERS)).format(reads[0])
    return Code(text if len(reads) == 1 else f"({text}) + {reads[1]}")


@st.composite
def reads_of_learned(draw) -> str:
    """One number from a learned tensor, by up to five steps."""
    text = draw(st.sampled_from(SOURCES))
    for _ in range(draw(st.integers(0, 4))):
        if not (shape := shape_of(text)):
            return text
        text = draw(steps(text, shape))
    if shape := shape_of(text):
        entry = f"{text}[{', '.join(draw(scalars(size)) for size in shape)}]"
        text = draw(st.sampled_from([entry, f"{text}.sum()", f"{text}.logsumexp({tuple(range(len(shape)))})"]))
    return text


def shape_of(text: str) -> tuple[int, ...]:
    """What the code gives for the first query and key."""
    indices = [torch.tensor(0) for _ in range(4)]
    return tuple(Code(text)(learned(), torch.tensor(0.0, dtype=torch.float64), *indices).shape)


def scalars(size: int):
    """An index into a dimension: of a scalar, counted from its end too, or a number."""
    inside = [f"({number}) % {size}" for number in NUMBERS]
    return st.sampled_from([*inside, *(f"{number} - {size}" for number in inside), "0", f"{size - 1}", "-1"])


@st.composite
def places(draw, size: int) -> str:
    """What stands for one dimension in an index."""
    others = [":", "::2", f"{size - 1}:", "IDX", "[0, -1, 0]"] if size > 1 else [":"]
    if size == len(BITS):
        others.append("BITS")
    return draw(st.one_of(scalars(size), scalars(size), st.sampled_from(others)))


@st.composite
def indices(draw, shape: tuple[int, ...]) -> str:
    """An index into some dimensions, from the front or around an ellipsis, with None or True beside."""
    items = [draw(places(size)) for size in shape[: draw(st.integers(1, len(shape)))]]
    if draw(st.booleans()) and len(items) < len(shape):
        back = [draw(places(size)) for size in shape[len(items) + 1 :]]
        items += ["...", *back]
    if draw(st.integers(0, 4)) == 0:
        items.insert(draw(st.integers(0, len(items))), draw(st.sampled_from(["None", "True"])))
    return ", ".join(items)


@st.composite
def steps(draw, text: str, shape: tuple[int, ...]) -> str:
    """The code with one more step."""
    dim = draw(st.integers(0, len(shape) - 1))
    size, number = shape[dim], draw(scalars(shape[dim]))
    scalar = f"torch.as_tensor({number})"
    ones = ", ".join("1" for _ in shape)
    if draw(st.booleans()):
        return f"{text}[{draw(indices(shape))}]"
    after = [
        f"{text}.unbind({dim})[{draw(st.integers(0, size - 1))}]",
        f"{text}.expand({', '.join(map(str, (2, *shape)))})",
        f"{text}.gather({dim}, ({scalar} % {size}).reshape({ones}))",
        f"{text}.index_select({dim}, {scalar}[None] % {size})",
        f"{text}.select({dim}, {number})",
        f"torch.select({text}, {dim - len(shape)}, {number})",
        f"{text}.sum({dim})",
        f"{text}.softmax({dim})",
        f"{text}.cumsum({dim})",
        f"{text}.flip({dim})",
        f"{text}.sort({dim}).values",
        f"{text}.movedim({dim}, 0)",
        f"torch.stack([{text}, 2 * {text}], {dim})" if len(text) < 80 else f"{text}.sin()",
    ]
    return draw(st.sampled_from(after))
