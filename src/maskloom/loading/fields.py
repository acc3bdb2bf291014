"""What a dataset gives: sequences, and fields beside them, in lists, arrays or tensors."""

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskloom.core.checks import INTEGERS, check_has_values, signed
from maskloom.core.words import brief, what_it_is


def fields_of(sequences: Sequence[Any], tokens: str) -> dict[str, list[Any]]:
    """The fields of the sequences by name, each with an entry for every sequence; ``tokens`` is among them."""
    if isinstance(sequences, (Mapping, str, bytes)) or not isinstance(sequences, Sized):
        raise TypeError(f"a batch is a list of sequences, or of mappings with their fields; got {brief(sequences)}")
    if len(sequences) == 0:
        raise ValueError("a batch has at least one sequence; got none")
    if not isinstance(sequences[0], Mapping):
        return {tokens: list(sequences)}
    names = list(sequences[0])
    for number, one in enumerate(sequences):
        if not isinstance(one, Mapping) or set(one) != set(names):
            got = list(one) if isinstance(one, Mapping) else type(one).__name__
            raise ValueError(f"sequence {number} has the fields {got}, and the first one {names}")
    if tokens not in names:
        raise ValueError(f"a sequence has its tokens in {tokens!r}; got {names}. Give tokens=")
    fields = {name: [one[name] for one in sequences] for name in names}
    if tokens != "attention_mask":
        _check_all_real(fields.pop("attention_mask", []), fields[tokens])
    return fields


def _check_all_real(attention_masks: list[Any], tokens: list[Any]) -> None:
    for number, (flags, own) in enumerate(zip(attention_masks, tokens, strict=False)):
        table = _flags(number, flags)
        if isinstance(own, Sized) and not is_one_number(own) and table.shape != (len(own),):
            raise ValueError(
                f"attention_mask of sequence {number} has a flag for each of {len(own)} tokens; got shape {tuple(table.shape)}"
            )
        if not bool(table.all()):
            raise ValueError(f"attention_mask of sequence {number} has a 0: give sequences without padding")


def _flags(number: int, flags: Any) -> Tensor:
    try:
        return torch.as_tensor(flags, device="cpu")
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise TypeError(
            f"attention_mask of sequence {number} has a flag for each token, 1 = real; got {brief(flags)}"
        ) from None


def tensors(name: str, values: list[Any]) -> list[Tensor]:
    """Sequences as tensors (length, ...) of one dtype and one width."""
    found = [_tensor(f"{name} of sequence {number}", value) for number, value in enumerate(values)]
    first = next((one for one in found if len(one)), found[0])
    for number, one in enumerate(found):
        if len(one) and (one.dtype != first.dtype or one.shape[1:] != first.shape[1:]):
            raise ValueError(
                f"{name} of sequence {number} is {what_it_is(one)}, and of an earlier one {what_it_is(first)}"
            )
    return [one if len(one) else first[:0] for one in found]  # an empty list has no dtype of its own


_NUMBERS = "buif"  # kinds of NumPy's dtypes


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        value = _from_array(name, value)
    if value.is_nested or value.layout is not torch.strided:
        raise TypeError(
            f"{name} is a dense tensor; got {what_it_is(value)}, {'nested' if value.is_nested else value.layout}"
        )
    check_has_values(name, value)
    value = signed(name, value)  # of others torch writes no rows
    if value.ndim == 0:
        raise ValueError(f"{name} has shape (length, ...); got one number")
    return value


def _from_array(name: str, value: Any) -> Tensor:
    """Integers become int64, as torch makes them of lists, and floats in a list the default dtype."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} is a tensor, an array or a list of numbers; got {brief(value)} ({error})") from None
    if array.dtype.kind not in _NUMBERS:
        raise TypeError(f"{name} is a tensor, an array or a list of numbers; got {brief(value)}")
    if array.dtype.kind == "u" and array.size:
        held(name, int(array.max()))
    if array.dtype.kind in "ui" or (array is not value and not array.size and array.ndim == 1):  # [] are no token ids
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind == "f" and array is not value:
        _check_digits(name, array, value)
    tensor = torch.from_numpy(array.copy())
    return tensor.to(torch.get_default_dtype()) if array is not value and tensor.is_floating_point() else tensor


def _check_digits(name: str, array: "np.ndarray[Any, Any]", value: Any) -> None:
    """Raise a ValueError for integers that NumPy made floats of, since no integer type has all of them."""
    if not array.size or np.abs(array).max() < 2**63:
        return
    for number in np.asarray(value, dtype=object).flat:
        if isinstance(number, (int, np.integer)):
            held(name, number)


def held(name: str, number: Any) -> Any:
    """A number that a tensor holds; unsigned integers of NumPy or torch as Python's, which become int64.

    Raises:
        ValueError: an integer that int64 does not have.
    """
    plain = number.item() if isinstance(number, (Tensor, np.ndarray, np.generic)) else number
    if not isinstance(plain, int):
        return number
    if not -(2**63) <= plain < 2**63:
        raise ValueError(f"{name} has integers from -2**63 to 2**63 - 1, as int64 has them; got {plain}")
    return plain if "uint" in str(getattr(number, "dtype", "")) else number


def labels_of(fields: dict[str, list[Any]], tokens: list[Tensor]) -> list[Tensor] | None:
    """The label of each token, taken out of the fields; by default token ids are labels. None if there are none."""
    if "labels" not in fields:
        return tokens if tokens[0].dtype in INTEGERS and tokens[0].ndim == 1 else None
    if all(map(is_one_number, fields["labels"])):
        return None
    labels = tensors("labels", fields["labels"])
    if labels[0].is_floating_point():
        return None
    del fields["labels"]
    for number, (own, one) in enumerate(zip(labels, tokens, strict=True)):
        if own.shape != one.shape[:1] or own.dtype not in INTEGERS:
            raise ValueError(f"labels of sequence {number} are {len(one)} integers, one a token; got {what_it_is(own)}")
    return labels


def is_by_token(value: Any, length: int) -> bool:
    """Whether a field has an entry for each of ``length`` tokens."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and value.shape[0] == length
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and value.shape[0] == length and value.dtype.kind in _NUMBERS
    if not (isinstance(value, (list, tuple)) and len(value) == length):
        return False
    return all(map(is_one_number, value)) or _is_of_rows(value)


def _is_of_rows(value: Sequence[Any]) -> bool:
    """Whether a list holds lists of numbers of one shape, as of the coordinates of each token."""
    if not all(isinstance(row, (list, tuple, np.ndarray)) for row in value):
        return False
    try:
        return np.asarray(value).dtype.kind in _NUMBERS
    except ValueError:  # of several lengths
        return False


def is_one_number(value: Any) -> bool:
    """Whether it is a number that a tensor holds, not a complex one, or a tensor or array with nothing but one."""
    if isinstance(value, Tensor):
        return value.ndim == 0
    if isinstance(value, (np.ndarray, np.generic)):
        return value.ndim == 0 and value.dtype.kind in _NUMBERS
    return isinstance(value, (int, float))
