"""What a block mask is built from: a mask that was run once, and the checks of what was asked for."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.blocks.analyse import Grid
from maskloom.masks import captured
from maskloom.masks.algebra import as_mask
from maskloom.masks.checks import as_int, as_list
from maskloom.masks.dense import MaskMod, checked_length
from maskloom.masks.examples import is_mapped
from maskloom.masks.forks import computed_once, fork_safe_lock
from maskloom.masks.modes import float_state, is_lasting, is_tracing
from maskloom.masks.program import Program
from maskloom.masks.reading import Reading, reading_of
from maskloom.masks.record import record
from maskloom.masks.symbols import is_int, known
from maskloom.masks.words import brief


@dataclass(frozen=True)
class Source:
    """A mask that was run once: what it does, what it depends on, and where its tensors are.

    Attributes:
        held: its tensors.
        bare: its program, with places for those.
        key: equal for all masks that have this program; None where it is not known which have.
    """

    mask: MaskMod
    held: list[Tensor]
    bare: Program
    reading: Reading
    device: torch.device
    key: Hashable | None

    @computed_once
    def program(self) -> Program:
        """The program, with the tensors in it."""
        return self.bare.holding(self.held)

    def grid(
        self,
        q_len: int,
        kv_len: int,
        batch: int | None,
        heads: int | None,
        sizes: tuple[int, int],
        q_offset: int | Tensor = 0,
        kv_offset: int | Tensor = 0,
    ) -> Grid:
        """The tiles to decide, B and H checked or inferred.

        Raises:
            ValueError: what is asked for does not fit the tables that the mask reads.
        """
        self.reading.check_length("q_idx", q_len + (q_offset if is_int(q_offset) else 0))
        self.reading.check_length("kv_idx", kv_len + (kv_offset if is_int(kv_offset) else 0))
        batch, heads = self.reading.size("b", batch), self.reading.size("h", heads)
        return Grid(batch, heads, q_len, kv_len, *sizes, q_offset, kv_offset)


_MOST = 256  # programs kept; the one unused for longest goes first
_programs: OrderedDict[Hashable, tuple[Program, Reading]] = OrderedDict()
_programs_lock = fork_safe_lock()


def read_source(mask: MaskMod, device: torch.device | str | None) -> Source:
    """Run a mask once, or not at all if one of its structure was; see `device_for` and `record` for what can be wrong.

    A Mask's program and reading follow from its structure, its numbers and the shapes of its tensors: from all but their
    values. A training step has a new mask of the same structure, and need not run it on scalars again.
    """
    device = device_for(mask, device)
    if is_tracing() or not captured.is_plain(mask):
        program = record(mask, device)
        return Source(mask, [], program.without_unused(), reading_of(program), device, None)
    held = captured.tensors(mask)
    shapes = tuple(tensor.shape for tensor in held)
    key = (captured.structure(mask, numbers=True), shapes, device, float_state())
    with _programs_lock:
        kept = _programs.get(key)
        if kept is not None:
            _programs.move_to_end(key)
    if kept is not None:
        return Source(mask, held, *kept, device, key)
    program = record(mask, device, held)
    bare, reading = program.without_unused().without(held), reading_of(program)
    # what the mask made on a device was made on this stream, and another could read it too early
    made_there = any(tensor.device.type != "cpu" for tensor in bare.constants)
    of_structure = program.of_structure and captured.is_as_known(mask)
    if of_structure and not made_there and is_lasting() and not torch.is_inference_mode_enabled():
        with _programs_lock:
            _programs[key] = bare, reading
            while len(_programs) > _MOST:
                _programs.popitem(last=False)
    return Source(mask, held, bare, reading, device, key if of_structure else None)


def device_for(mask: MaskMod, device: torch.device | str | None) -> torch.device:
    """Where a mask is built: as asked, else where its tensors are, else the current accelerator, else the CPU.

    Raises:
        ValueError: the mask's tensors are elsewhere, or on several devices.
    """
    held = captured.device_of(mask)
    if device is None:
        return held or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    asked = torch.empty(0, device=device).device  # "cuda" with its number
    if held is not None and held != asked:
        raise ValueError(
            f"the mask's tensors lie on {held}, and the block mask is to be built on {asked}; move one to the other: "
            f"mask.to({str(asked)!r}), or device={str(held)!r}. In a module, a maskloom.Holder moves the mask with it"
        )
    return asked


def refuse_mapped(mask: MaskMod) -> None:
    """Raise a ValueError if torch.vmap maps over the mask's tensors: one block mask does not serve all examples."""
    if is_mapped(mask):
        raise ValueError(
            "torch.vmap maps over tensors of this mask, and a block mask has tables for one: give attend the mask itself, or "
            "build the block mask outside of vmap"
        )


def checked_sizes(mask: MaskMod, q_len: int, kv_len: int, block_size: int | tuple[int, int]) -> tuple[int, int]:
    """The block size as a pair (Q, KV).

    Raises:
        TypeError: ``mask`` is not a mask. ValueError: a length or a block size below 1.
    """
    as_mask(mask)  # raises if it is none
    checked_length("q_len", q_len)
    checked_length("kv_len", kv_len)
    block_size = as_list(as_int(block_size))
    given = (block_size, block_size) if is_int(block_size) else block_size
    pair = tuple(map(as_int, given)) if isinstance(given, (tuple, list)) else ()
    if len(pair) != 2 or any(not is_int(size) or known(size < 1) for size in pair):
        raise ValueError(
            f"the block size is a number of positions, at least 1, or a pair (Q, KV); got {brief(block_size)}"
        )
    return pair
