"""What a mask is, in few bytes: a digest of its recorded program, and one of the tensors that the program reads."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.masks.algebra import Mask
from maskloom.program.mask_program import program_of
from maskloom.program.program import Program, mapped


class Digest(NamedTuple):
    """Equal for masks that do the same, whatever objects they are."""

    program: str
    tensors: str


def digest_of(mask: Mask) -> Digest:
    """The digest of a mask whose tensors are on the CPU.

    Two masks of one program whose tensors have equal values have one digest, also functions of two processes.
    """
    source = program_of(mask, "cpu")
    constants = list({id(tensor): tensor for tensor in source.program.constants}.values())
    words = _words(source.program, {id(tensor): place for place, tensor in enumerate(constants)})
    said = words if source.program.unsupported_reason is None else f"{words} {captures.structure(mask, numbers=True)!r}"
    return Digest(_hashed([said.encode()]), _hashed(map(_bytes_of, constants)))


def _words(program: Program, places: dict[int, int]) -> str:
    """The operations of a program, with numbers for its tensors."""

    def said(leaf: Any) -> Any:
        return f"tensor {places[id(leaf)]}" if isinstance(leaf, Tensor) else leaf

    steps = [(str(step.op), *step.filled(said), step.results) for step in program.steps]
    return repr((steps, mapped(program.answer, said), program.metas))


def _bytes_of(tensor: Tensor) -> bytes:
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return head + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _hashed(parts: Iterable[bytes]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()
