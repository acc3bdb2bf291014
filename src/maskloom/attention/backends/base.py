"""What a backend of attention is: one object that says all about it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict, get_args

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.request import Attended, Request
from maskloom.core import captures
from maskloom.core.symbols import ceil_div
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask
from maskloom.scores.base import ScoreMod

BackendName = Literal["decode", "flash", "sdpa", "varlen", "triton", "sliced", "reference"]
"""In the order of "auto": the first that can do what is asked runs, but for what `choose` says."""


def check_name(name: Any) -> None:
    """Raise a ValueError for what is neither "auto" nor the name of a backend."""
    if name not in _NAMES:
        raise ValueError(f"backend is one of {', '.join(_NAMES)}; got {brief(name)}")


_NAMES = ("auto", *get_args(BackendName))

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Prepared:
    """What a backend does for a mask, but for query, key and value, and for the tensors of a score mod.

    Attributes:
        run: called with query, key, value and the score mod, or None: that of the request, or one of its structure.
        nbytes: of the table that it holds.
        blocks: the BlockMask that the kernel gets, of a backend by tiles.
        with_blocks: the same with another one of the same kind: a mask of the same structure, tables of the same shapes.
    """

    run: Callable[[Tensor, Tensor, Tensor, ScoreMod | None], Attended]
    nbytes: int = 0
    blocks: BlockMask | None = None
    with_blocks: Callable[[BlockMask], "Prepared"] | None = None


class Backend(ABC):
    """One way to run attention: what it is, what it refuses, why it is chosen, what it skips, how it runs."""

    name: ClassVar[BackendName]
    what: ClassVar[str]
    """What it is, in one line."""
    where: ClassVar[str]
    """Where "auto" chooses it."""
    why: ClassVar[str]
    """Why it is chosen there."""
    skipped: ClassVar[str] = "nothing"
    """What it does not compute."""
    by_tiles: ClassVar[bool] = False
    """Whether it visits the tiles of a BlockMask, and skips the others."""
    takes_options: ClassVar[bool] = False
    """Whether torch's kernel_options are for it."""
    drops: ClassVar[str | None] = None
    """How it drops probabilities, in one line; None if it cannot."""
    hides_scores: ClassVar[bool] = False
    """Whether a hidden score counts for nothing whatever it is, NaN too. Then, of a forward alone, only values leak."""
    takes_tables: ClassVar[bool] = False
    """Whether the mask goes in as a table, by `with_table`."""

    @abstractmethod
    def refuse(self, request: Request) -> str | None:
        """Why it cannot do this; None if it can. It names what tensors, mask or options have, and launches nothing."""

    def refuse_in_graph(self, request: Request) -> str | None:
        """Why "auto" does not take it inside the user's torch.compile, where it would outside."""
        return None

    @abstractmethod
    def run(self, request: Request) -> Attended:
        """Attention of a request that it does not refuse.

        A query that sees nothing has output 0, log-sum-exp -inf and gradients 0. A BlockMask means what
        `blocks.dense.dense_of` says. Offsets are in mask, score_mod and dropout already.
        """

    def prepare(self, request: Request) -> Prepared | None:
        """What is the same at each call like this one, done once; None where nothing is.

        It is kept with the request's mask, and must hold neither that nor its BlockMask, nor the score mod.
        """
        return None

    def block_size(self, request: Request) -> tuple[int, int]:
        """Of the BlockMask that is built for it, where it works by tiles: positions in a tile, (Q, KV)."""
        return 128, 128

    def with_table(self, query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float | None) -> Attended:
        """Attention of a request that it does not refuse, of which the mask is a table: bool, broadcasts to (B, H, Q, K)."""
        raise AssertionError(f"{self.name} takes no table")

    def reason(self, request: Request) -> str:
        """Why it was chosen for this."""
        return self.why

    def passed_over(self) -> str:
        """Why "auto" does not take it where it could do what is asked, and comes before what it took."""
        raise AssertionError(f"{self.name} is taken wherever it can do what is asked")

    def skips(self, request: Request) -> str:
        """What it does not compute of this."""
        return self.skipped


def nondeterministic(request: Request) -> str | None:
    """The refusal of a backend whose gradients differ from run to run, where they must not."""
    if request.deterministic and request.needs_gradients:
        return "its gradients are not the same at every run"
    return None


SHORT = 128  # queries up to which Triton's kernel was faster than FLASH, whatever the batch

LITTLE = 1 << 37
"""B × H × Q × K × D below which a step on Triton's kernel was faster than on FLASH, whose launch takes the host longer (H200)."""

LONG = 4096
"""Queries from which on FLASH is taken from half of `LITTLE` on, unless documents hide most: a model of such rows has so much other work for
the GPU that the host is ahead, and the GPU's own time counts, which is less."""


_FEW_TILES = 1024
_FEW_IN_A_ROW = 8
"""Tiles of all batch rows and heads that a GPU visits in the time that the host takes to launch a few kernels, and of one row or column
of them, which it visits one behind the other."""


def visits_all(request: Request, block_size: tuple[int, int]) -> bool:
    """Whether attention visits all tiles of a Mask, because finding those that it can skip would take longer.

    Of a mask without tensors they are found once and for all. Options for the kernel may count on tiles that are skipped.
    """
    mask = request.mask
    if not isinstance(mask, Mask) or request.kernel_options or torch.compiler.is_compiling():
        return False
    if not captures.tensors(mask):
        return False
    batch, heads, *lengths = request.sizes
    rows, columns = (ceil_div(length, block) for length, block in zip(lengths, block_size, strict=True))
    few = max(rows, columns) <= _FEW_IN_A_ROW and batch * heads * rows * columns <= _FEW_TILES
    return few or rows == columns == 1


def blocks_of(request: Request) -> BlockMask:
    """The BlockMask that a backend with ``by_tiles`` gets in the place of any mask."""
    assert isinstance(request.mask, BlockMask)
    return request.mask


# -- what a user asks, typed once for all functions that pass it on ----------------------------------------------------


class SharedOptions(TypedDict, total=False):
    """What `attend`, `Plan.attend` and the module take alike."""

    score_mod: ScoreMod | None
    scale: float | None
    backend: BackendName | Literal["auto"]
    sinks: Tensor | None
    dropout: float
    dropout_seed: int | Tensor | None
    clean_padding: bool
    deterministic: bool
    allow_slow: bool
    kernel_options: Mapping[str, object] | None


class Offsets(TypedDict, total=False):
    """Where queries and heads begin."""

    q_offset: int | Tensor | None
    h_offset: int | Tensor | None


class Options(SharedOptions, Offsets, total=False):
    """All of `attend`, but for ``return_aux``, which decides what it returns."""
