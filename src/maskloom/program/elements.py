"""A mask_mod evaluated at chosen elements of chosen tiles: by its program on exact indices, or by torch.vmap."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskloom.core.forks import ends_along, load_vmap
from maskloom.core.torch_state import without_autocast
from maskloom.program.batched import batched, results_of
from maskloom.program.program import INDICES, MaskMod, Program, Value

_LEAD = 3  # batch dims before a value's event dims: tiles, elements of a tile along Q, elements along K


@dataclass(frozen=True)
class Elements:
    """A rectangle of elements in each of T tiles.

    Attributes:
        b, h: int64 (T,), the batch row and head of each tile.
        q_idx: int64 (T, n), positions.
        kv_idx: int64 (T, m).
    """

    b: Tensor
    h: Tensor
    q_idx: Tensor
    kv_idx: Tensor

    def part(self, tiles: slice) -> "Elements":
        """Some of the tiles."""
        return Elements(self.b[tiles], self.h[tiles], self.q_idx[tiles], self.kv_idx[tiles])


def evaluate(program: Program, mask_mod: MaskMod, elements: Elements) -> Tensor:
    """The mask_mod's answers: bool (T, n, m), with size 1 in a dim where they do not vary."""
    b, h = elements.b[:, None, None], elements.h[:, None, None]
    answers = run_at(program, [b, h, elements.q_idx[..., None], elements.kv_idx[:, None]], _LEAD)
    return _vmapped(mask_mod, elements) if answers is None else answers


def seen_in(program: Program, mask_mod: MaskMod, elements: Elements) -> tuple[Tensor, Tensor]:
    """Whether some answer of each tile is True, and whether some is False: bool (T,) each."""
    answers = evaluate(program, mask_mod, elements)
    every, some = ends_along(answers.flatten(1), -1)
    return some, ~every


def widest(program: Program) -> int:
    """The largest number of entries of one value for one element; used to bound memory."""
    return max(math.prod(meta.shape) for meta in program.metas)


def size_of(program: Program, sizes: tuple[int, int, int, int]) -> int:
    """Bytes of all values of the program, when it runs for all combinations of that many values of each index."""
    reads = {Value(slot): frozenset({slot}) for slot in range(len(INDICES))}
    found = 0
    for step in program.steps:
        read = frozenset[int]().union(*(reads[ref] for ref in step.refs))
        for result in step.results:
            reads[result] = read
            meta = program.metas[result.slot]
            found += meta.dtype.itemsize * math.prod(meta.shape) * math.prod(sizes[slot] for slot in read)
    return found


def run_at(program: Program, indices: list[Tensor], lead: int) -> Tensor | None:
    """Run the program on exact indices; None if the program, or an operation of it, cannot be batched.

    Args:
        indices: int64 b, h, q_idx and kv_idx, each with ``lead`` dims that broadcast to one batch of elements.
    """
    if program.unsupported_reason is not None:
        return None
    values: dict[Value, Tensor] = {Value(i): index for i, index in enumerate(indices)}

    def tensor_of(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return values[leaf]
        return leaf.to(indices[0].device).reshape(*(1,) * lead, *leaf.shape) if isinstance(leaf, Tensor) else leaf

    with without_autocast(indices[0].device):
        for step in program.steps:
            args, kwargs = step.filled(tensor_of)
            outs = results_of(step, program, functools.partial(batched, step.op, args, kwargs, lead))
            if outs is None:
                return None
            for out, ref in zip(outs, step.results, strict=True):
                meta = program.metas[ref.slot]
                if out.dtype != meta.dtype or tuple(out.shape[lead:]) != meta.shape:
                    return None
                values[ref] = out
    answer = program.answer
    return values[answer] if isinstance(answer, Value) else answer.reshape((1,) * lead)


def _vmapped(mask_mod: MaskMod, elements: Elements) -> Tensor:
    """Each element alone under torch.vmap, as torch's ``create_mask`` does it."""
    load_vmap()  # loads torch's compiler too, so not done at `import maskloom`
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    over_keys: Callable[..., Tensor] = torch.vmap(mask_mod, in_dims=(None, None, None, 0))
    over_both = torch.vmap(over_keys, in_dims=(None, None, 0, None))
    with torch.no_grad(), TransformGetItemToIndex():
        return torch.vmap(over_both)(elements.b, elements.h, elements.q_idx, elements.kv_idx)
