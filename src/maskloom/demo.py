"""The main job, from lines of text to attention: split, embed, pad, mask, attend, differentiate, check, draw.

`maskloom.cli` prints what is computed here.
"""

import contextlib
import copy
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.attend import Explanation, explain
from maskloom.attention.reference import reference
from maskloom.batches.forms import pads_from_zeros
from maskloom.blocks.build import block_mask
from maskloom.masks.algebra import Mask
from maskloom.masks.patterns.padding import padding
from maskloom.masks.patterns.relative import causal
from maskloom.nn.multihead import MultiheadFlexAttention
from maskloom.show.figures import save_figure

SEED = 20240801
LONGEST_FILE = 64 * 2**20  # bytes
LONGEST_LINE = 1024  # words
LONGEST_WORD = 256  # characters
LARGEST_DIM = 4096
LARGEST_CHECK = 2**27  # float64 scores of the dense reference, 1 GiB

Progress = Callable[[str], contextlib.AbstractContextManager[object]]


class InputError(Exception):
    """The user's input cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Batch:
    """Sequences of words as a padded batch.

    Attributes:
        words: the words of each sequence.
        x: (B, L, dim) embeddings, zero vectors as padding.
        pads: bool (B, L), True = padding.
    """

    words: list[list[str]]
    x: Tensor
    pads: Tensor


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference between one result and its float64 reference.

    Attributes:
        name: "out", or the name of the input or parameter whose gradient it is.
        ours: the difference of maskloom.
        plain: the difference of the dense reference in the dtype that maskloom ran in.
    """

    name: str
    ours: float
    plain: float

    @property
    def is_right(self) -> bool:
        """Whether ours is at most twice the plain difference, plus a little for results that are all 0."""
        return self.ours <= 2 * self.plain + 1e-6  # False for NaN


@dataclass(frozen=True)
class Demo:
    """The results of one run."""

    batch: Batch
    mask: Mask
    blocks: BlockMask
    explanation: Explanation
    differences: list[Difference]
    seconds: dict[str, float]
    pictures: list[Path]

    @property
    def is_right(self) -> bool:
        """Whether output and gradients agree with the dense reference."""
        return all(difference.is_right for difference in self.differences)


def run(text: Path | None, *, heads: int, dim: int, out: Path, device: str, progress: Progress) -> Demo:
    """Run the main job.

    Args:
        text: a file with one sequence of words in each line; None for the Zen of Python.
        heads, dim: heads of the attention and features of an embedding.
        out: directory for the pictures; it is made if it does not exist.
        device: "auto", or a torch device.
        progress: called with the name of the current step; returns a context for its duration.

    Raises:
        InputError: the input cannot be used. It is raised before anything is computed or written.
    """
    if heads < 1 or dim < 1 or dim % heads:
        raise InputError(f"--dim is a multiple of --heads, both at least 1; got --dim {dim} and --heads {heads}")
    if dim > LARGEST_DIM:
        raise InputError(f"--dim is at most {LARGEST_DIM} in the demo; got {dim}")
    where = _device(device)
    sequences = [line.split() for line in (zen_of_python() if text is None else _lines(text))]
    _check_sizes(sequences, heads, text or "the Zen of Python")
    _make_writable(out)
    seconds: dict[str, float] = {}

    with progress("embedding and padding"):
        batch = embed(sequences, dim, where)
    mask = causal & padding(batch.pads)
    length = batch.x.shape[1]
    with progress("building the block mask"), _timed(seconds, "block mask", where):
        blocks = block_mask(mask, length, length, block_size=_block_size(length, where))
    module = _module(dim, heads, where)
    with progress("attention, forward and backward (the first time on a GPU compiles)"):
        result = _forward_and_backward(module, batch, blocks, seconds)
    with progress("checking against the dense reference in float64"), _timed(seconds, "check", where):
        differences = _differences(module, batch, mask, result)
    explanation = explain(*_projected(module, batch.x), blocks)
    with progress("drawing"), _timed(seconds, "pictures", where):
        pictures = _draw(module, batch, mask, blocks, out)
    return Demo(batch, mask, blocks, explanation, differences, seconds, pictures)


def zen_of_python() -> list[str]:
    """The nineteen aphorisms that ``import this`` prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    decoded = "".join(this.d.get(letter, letter) for letter in this.s)
    return [line for line in decoded.splitlines()[1:] if line.strip()]


def embed(sequences: list[list[str]], dim: int, device: torch.device) -> Batch:
    """Give each word a seeded random vector, and pad each sequence with zero vectors to the longest length."""
    vocabulary = {word: index for index, word in enumerate(sorted({word for words in sequences for word in words}))}
    table = torch.randn(len(vocabulary), dim, generator=torch.Generator().manual_seed(SEED))
    rows = [table[torch.tensor([vocabulary[word] for word in words])] for words in sequences]
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    return Batch(sequences, x, pads_from_zeros(x))


# -- input -------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory; --text takes a file with one sequence in each line")
        if path.stat().st_size > LONGEST_FILE:
            raise InputError(f"{path} has {path.stat().st_size} bytes; the demo takes at most {LONGEST_FILE}")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} has no words; each line is a sequence of words")
    return lines


def _check_sizes(sequences: list[list[str]], heads: int, source: Path | str) -> None:
    for number, words in enumerate(sequences, 1):
        if len(words) > LONGEST_LINE:
            raise InputError(
                f"{source}: sequence {number} has {len(words)} words; the demo takes at most {LONGEST_LINE}"
            )
        longest = max(map(len, words))
        if longest > LONGEST_WORD:
            raise InputError(f"{source}: sequence {number} has a word of {longest} characters; at most {LONGEST_WORD}")
    scores = len(sequences) * heads * max(map(len, sequences)) ** 2
    if scores > LARGEST_CHECK:
        raise InputError(
            f"{source}: {len(sequences)} sequences of up to {max(map(len, sequences))} words give the dense check "
            f"{scores} scores; at most {LARGEST_CHECK}. Take fewer lines, or fewer --heads"
        )


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be a directory: {error.strerror}") from None
    if not os.access(out, os.W_OK):
        raise InputError(f"--out {out} cannot be written to")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"--device is auto, cpu, cuda or cuda:N; got {name}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0][:200]}") from None
    return device


# -- attention ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DemoResult:
    """Output and gradients of the module, and the incoming gradient."""

    values: dict[str, Tensor]
    grad: Tensor


def _module(dim: int, heads: int, device: torch.device) -> MultiheadFlexAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return MultiheadFlexAttention(dim, dim, heads).to(device)


def _forward_and_backward(
    module: MultiheadFlexAttention, batch: Batch, blocks: BlockMask, seconds: dict[str, float]
) -> _DemoResult:
    device = batch.x.device
    x = batch.x.clone().requires_grad_()
    generator = torch.Generator().manual_seed(SEED)
    grad = torch.randn(x.shape, generator=generator).to(device).masked_fill(batch.pads[..., None], 0.0)
    for which in ("first forward", "forward"):  # the first one may compile
        with _timed(seconds, which, device):
            out = module(x, blocks).out
    with _timed(seconds, "backward", device):
        out.backward(grad)
    return _DemoResult(_results(module, out, x), grad)


def _differences(module: MultiheadFlexAttention, batch: Batch, mask: Mask, result: _DemoResult) -> list[Difference]:
    truth = _dense(module, batch, mask, result.grad, torch.float64)
    plain = _dense(module, batch, mask, result.grad, batch.x.dtype)
    return [
        Difference(name, _largest(result.values[name], exact), _largest(plain[name], exact))
        for name, exact in truth.items()
    ]


def _dense(
    module: MultiheadFlexAttention, batch: Batch, mask: Mask, grad: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Output and gradients of the same module, computed with the dense reference."""
    plain = copy.deepcopy(module).to(dtype)
    plain.zero_grad()
    x = batch.x.to(dtype).requires_grad_()
    attention, _ = reference(*_projected(plain, x), mask)
    out = plain.out_proj(attention.transpose(1, 2).flatten(2))
    out.backward(grad.to(dtype))
    return _results(plain, out, x)


def _projected(module: MultiheadFlexAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (B, H, L, D)."""
    query, key, value = module.in_proj(x).unflatten(-1, (3, module.n_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def _results(module: MultiheadFlexAttention, out: Tensor, x: Tensor) -> dict[str, Tensor]:
    gradients = {name: parameter.grad for name, parameter in [("x", x), *module.named_parameters()]}
    return {"out": out.detach(), **{name: grad for name, grad in gradients.items() if grad is not None}}


def _largest(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max())


def _block_size(length: int, device: torch.device) -> int:
    """Positions in a tile: 128 on a GPU, where kernels need it; fewer if the picture would be one tile."""
    if device.type != "cpu":
        return 128
    return max(1, min(128, 2 ** ((length // 4).bit_length() - 1) if length >= 4 else 1))


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[name] = time.perf_counter() - start


# -- pictures ----------------------------------------------------------------------------------------------------------


def _draw(module: MultiheadFlexAttention, batch: Batch, mask: Mask, blocks: BlockMask, out: Path) -> list[Path]:
    from maskloom import show

    row = _drawn_sequence(batch)
    words = batch.words[row]
    tokens = words + ["·"] * (batch.x.shape[1] - len(words))
    with torch.no_grad():
        _, queries, keys = module(batch.x, blocks)
    attention = show.attention(
        queries, keys, mask, batch=row, heads=0, tokens=tokens, title=f"attention of sequence {row + 1}, head 1"
    )
    tiles = show.tiles(blocks, batch=_short_drawn_long(batch))
    return [save_figure(attention, out / "attention.png"), save_figure(tiles, out / "tiles.png")]


def _short_drawn_long(batch: Batch) -> list[int]:
    """The shortest sequence, the one whose attention is drawn, and the longest, in the order of their lengths."""
    lengths = [len(words) for words in batch.words]
    rows = [lengths.index(min(lengths)), _drawn_sequence(batch), lengths.index(max(lengths))]
    return sorted(dict.fromkeys(rows), key=lambda row: lengths[row])


def _drawn_sequence(batch: Batch) -> int:
    """The sequence whose length is closest to two thirds of the longest: long enough to see, with visible padding."""
    lengths = [len(words) for words in batch.words]
    return min(range(len(lengths)), key=lambda row: abs(lengths[row] - 2 * max(lengths) / 3))
