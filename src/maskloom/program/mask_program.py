"""The entry point: run a mask once on scalars; everything else uses its recorded program."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.cache import LRU, cached_with
from maskloom.core.forks import computed_once, load_vmap
from maskloom.core.torch_state import can_cache, float_state, is_tracing
from maskloom.core.values import holds_function
from maskloom.program.dependence import Dependence, dependence_of
from maskloom.program.elements import run_at, size_of
from maskloom.program.getitem import IndexByTensors
from maskloom.program.program import MaskMod, Program
from maskloom.program.record import record
from maskloom.program.under_compile import sizes_read
from maskloom.program.vmapped import example_of

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class _Run:
    """The result of one run of a mask on scalars; equal to itself only, so that it is a key of masks with this program."""

    bare: Program
    dependence: Dependence
    is_mapped: bool

    @property
    def is_of_structure(self) -> bool:
        """Whether every mask of this structure has the same program."""
        # a constant that the mask made on a device was made on this stream; another stream could read it too early
        return self.bare.of_structure and all(tensor.device.type == "cpu" for tensor in self.bare.constants)


@dataclass(frozen=True)
class MaskProgram:
    """A mask that was run once: its program, its dependence on the indices, and its tensors.

    Attributes:
        held: its tensors.
        bare: its program, with slots for those tensors.
        dependence: which indices can change its answer, and the sizes of the tables that they read.
        device: the device of the indices in that run.
        key: equal for all masks with this program; None if it is not known which masks share it.
        is_mapped: whether torch.vmap maps over one of its tensors: the program is that of the first example then.
    """

    mask: MaskMod
    held: list[Tensor]
    bare: Program
    dependence: Dependence
    device: torch.device
    key: Hashable | None
    is_mapped: bool = False

    @property
    def is_of_numbers(self) -> bool:
        """Whether its answers follow from its structure and numbers alone: it reads no tensor."""
        return self.key is not None and not self.held

    @computed_once
    def program(self) -> Program:
        """The program with the tensors in its slots."""
        return self.bare.holding(self.held)

    def of(self, mask: MaskMod, held: list[Tensor]) -> "MaskProgram":
        """The same of another mask of this structure, which holds these tensors."""
        return MaskProgram(mask, held, self.bare, self.dependence, self.device, self.key)


_programs: LRU[Hashable, _Run | Literal["of values"]] = LRU(256)
"""Runs by the structure of their masks; "of values" if a program depends on tensor values, and is cached per mask."""


def program_of(mask: MaskMod, device: torch.device | str) -> MaskProgram:
    """Run a mask on scalars once; later calls return the program of that run. This is the only way into a mask.

    A Mask's program depends on its structure, its numbers and the shapes of its tensors, but not on their values. A
    training step has a new mask of the same structure, and need not run it again. If a program was computed from the
    values of tensors, it is cached with that very mask, until someone writes into them. Functions may read anything, so
    they are run every time.

    Args:
        mask: a Mask or a mask_mod.
        device: the device of the indices, where the mask's tensors are.

    Raises:
        TypeError, ValueError: see `maskloom.program.record.record`.
    """
    device = torch.device(device)
    held, structure = ([], None) if is_tracing() else captures.tensors_and_key(mask)

    def run() -> _Run:
        with torch.inference_mode(False):  # else its constants would be inference tensors, unusable elsewhere
            example, is_mapped = example_of(mask)
            program = record(example, device, held)
        dependence = dependence_of(program)
        return _Run(program.without(held), dependence, is_mapped)

    def result(run: _Run, key: Hashable | None) -> MaskProgram:
        return MaskProgram(mask, held, run.bare, run.dependence, device, key, run.is_mapped)

    if structure is None:
        return result(run(), None)
    world = device, float_state()  # the other inputs of the program
    key = structure, tuple([tensor.shape for tensor in held]), *world
    found, compute = _programs.get(key), run
    if found is None:
        first = run()
        if first.bare.reads_uncaptured:
            return result(first, None)
        found, compute = first if first.is_of_structure and captures.is_as_known(mask) else "of values", lambda: first
        if can_cache():
            _programs.put(key, found)
    if isinstance(found, _Run):
        return result(found, found)
    return result(cached_with(mask, ("program", *world), compute), None)


_answers: LRU[Hashable, Any] = LRU(1024)


def known_of(mask: MaskMod, device: torch.device | str, question: Hashable, compute: Callable[[], R]) -> R:
    """``compute()``, what follows from a mask's program; kept for all masks that have the same.

    Of a mask of our classes alone it is kept by its structure: batches of other lengths need no program for it.

    Args:
        question: names what is computed. The result holds no tensor of the mask, and depends neither on their values nor on
            their sizes, but for those of 0 and 1.
    """
    if is_tracing():
        return compute()
    of_structure = _key_of_ours(mask, torch.device(device))
    found = None if of_structure is None else _answers.get((question, of_structure))
    if found is None:
        key = program_of(mask, device).key
        if key is None:
            return compute()
        found = _answers.get((question, key)) or (compute(),)
        _answers.put((question, key), found)
        if of_structure is not None:
            _answers.put((question, of_structure), found)
    return cast(R, found[0])


def _key_of_ours(mask: MaskMod, device: torch.device) -> Hashable | None:
    """A key of masks that do the same with tables of any size; None where a class of others, or an empty table, may not."""
    if holds_function(mask):
        return None
    tensors, structure = captures.tensors_and_key(mask)
    return (
        None
        if structure is None or any(not tensor.numel() for tensor in tensors)
        else (structure, device, float_state())
    )


def dependence_on(mask: MaskMod, device: torch.device | str) -> Dependence:
    """The indices and table sizes that a mask's answer depends on.

    While torch.compile or torch.export traces, no program can be recorded. Then only the sizes are found, and the answer
    is assumed to depend on every index.
    """
    if torch.compiler.is_compiling():
        return Dependence.on_all(sizes_read(mask, device))
    return program_of(mask, device).dependence


_MOST_BYTES = 1 << 19  # maximum bytes of all values at one time while a table is computed


def table_of(source: MaskProgram, sizes: tuple[int, int, int, int], q_offset: int | Tensor = 0) -> Tensor:
    """The mask as a table: bool (B, H, Q, K) of shape ``sizes``, computed by the program, some query rows at a time.

    Args:
        q_offset: the position of the first query.
    """
    batch, heads, q_len, kv_len = sizes
    b, h, q_idx, kv_idx = (
        torch.arange(size, device=source.device).view(*(-1 if dim == axis else 1 for dim in range(4)))
        for axis, size in enumerate(sizes)
    )
    q_idx = q_idx + q_offset
    rows = max(1, _MOST_BYTES // max(1, size_of(source.program, (batch, heads, 1, kv_len))))
    parts = []
    for first in range(0, q_len, rows):
        with torch.no_grad():
            answers = run_at(source.program, [b, h, q_idx[:, :, first : first + rows], kv_idx], 4)
        if answers is None:
            return _vmapped_table(source.mask, [b.flatten(), h.flatten(), q_idx.flatten(), kv_idx.flatten()])
        parts.append(answers.expand(batch, heads, min(rows, q_len - first), kv_len))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 2)


def _vmapped_table(mask_mod: MaskMod, indices: list[Tensor]) -> Tensor:
    """Each element alone under torch.vmap, as torch's ``create_mask`` does it."""
    load_vmap()
    batched: Any = mask_mod
    for axis in (3, 2, 1, 0):
        batched = torch.vmap(batched, in_dims=tuple(0 if at == axis else None for at in range(4)))
    with torch.no_grad(), IndexByTensors():
        return batched(*indices)
