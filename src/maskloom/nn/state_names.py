"""The names of attention's weights in other libraries: loaded into `MultiheadFlexAttention`, and written back.

| names | whose |
|---|---|
| ``in_proj_weight``, ``in_proj_bias``; ``q_proj_weight`` ... ``v_proj_weight`` | torch's nn.MultiheadAttention |
| ``q_proj.weight``, ``k_proj.weight``, ``v_proj.weight``, ``o_proj.weight`` and ``.bias`` | transformers' Llama, Mistral, Qwen, Gemma |
| ``wq.weight`` ... ``wv.weight``, ``wo.weight`` | Meta's own Llama, Mistral's own |
| ``qkv_proj.weight`` | Phi-3; rows of queries, keys and values as here |
"""

from collections.abc import MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskloom.core.words import brief, what_it_is

_APART = ("{}_proj.{kind}", "w{}.{kind}", "{}_proj_{kind}")
_TOGETHER = ("in_proj_{kind}", "qkv_proj.{kind}")
_OUT = ("o_proj.", "wo.")


def rename_in(
    state: MutableMapping[str, Any], prefix: str, *, q_shape: tuple[int, int], kv_shape: tuple[int, int], is_fused: bool
) -> dict[str, list[str]]:
    """Rename what a state dict has of other libraries' names to ours, in place.

    Args:
        q_shape, kv_shape: rows and features of the queries' projection, and of that of keys or values.
        is_fused: whether the module has ``in_proj``, not ``q_proj`` and ``kv_proj``.

    Returns:
        For "weight" and "bias", what has other sizes, as torch says it. That is taken out, and not renamed.
    """
    shapes = q_shape, kv_shape, kv_shape
    weights = _taken(state, prefix, "weight")
    biases = _taken(state, prefix, "bias", rows=[rows for rows, _ in shapes], all_needed=weights is None)
    refused: dict[str, list[str]] = {}
    for kind, named in (("weight", weights), ("bias", biases)):
        if named is None:
            continue
        wrong = _of_other_sizes(named, [shape if kind == "weight" else shape[:1] for shape in shapes])
        if wrong:
            refused[kind] = wrong
            continue
        parts = list(named.values())
        if len(parts) == 1 and not is_fused:
            parts = list(parts[0].split([q_shape[0], 2 * kv_shape[0]]))
        if is_fused:
            state[f"{prefix}in_proj.{kind}"] = torch.cat(parts)
        else:
            state[f"{prefix}q_proj.{kind}"], state[f"{prefix}kv_proj.{kind}"] = parts[0], torch.cat(parts[1:])
    for old in _OUT:
        for kind in ("weight", "bias"):
            if prefix + old + kind in state:
                state[f"{prefix}out_proj.{kind}"] = state.pop(prefix + old + kind)
    return refused


def _of_other_sizes(named: dict[str, Tensor], shapes: list[tuple[int, ...]]) -> list[str]:
    """What does not fit, of parts of these shapes, or of all in one."""
    if len(named) == 1:
        shapes = [(sum(shape[0] for shape in shapes), *shapes[0][1:])]
    for name, part in named.items():
        if not isinstance(part, Tensor):
            return [f"{name} is a tensor; got {what_it_is(part)}."]
    return [
        f"size mismatch for {name}: copying a param with shape {part.shape} from checkpoint, the shape in current model is "
        f"{torch.Size(shape)}."
        for (name, part), shape in zip(named.items(), shapes, strict=True)
        if tuple(part.shape) != shape
    ]


def _taken(
    state: MutableMapping[str, Any], prefix: str, kind: str, rows: list[int] | None = None, all_needed: bool = True
) -> dict[str, Tensor] | None:
    """The parts of a projection by name, taken out of a state dict: all in one, or queries', keys' and values'; None without."""
    for name in _TOGETHER:
        found = prefix + name.format(kind=kind)
        if found in state:
            return {found: state.pop(found)}
    for name in _APART:
        names = [prefix + name.format(letter, kind=kind) for letter in "qkv"]
        is_there = [one in state for one in names]
        if all(is_there) or (any(is_there) and not all_needed):
            return _each(state, names, rows)
    return None


def _each(state: MutableMapping[str, Any], names: list[str], rows: list[int] | None) -> dict[str, Tensor]:
    """The entries of some names; zeros for a bias that is not there (Whisper has none for keys)."""
    some = next(state[name] for name in names if name in state)
    sizes = rows or [0, 0, 0]
    return {
        name: state.pop(name) if name in state else some.new_zeros(size)
        for name, size in zip(names, sizes, strict=True)
    }


def renamed(
    module: nn.Module, names: Literal["llama", "torch"], prefix: str, *, q_rows: int, kv_rows: int
) -> dict[str, Tensor]:
    """A module's state dict under the names of Llama in transformers, or of nn.MultiheadAttention."""
    if names not in ("llama", "torch"):
        raise ValueError(f'names is "llama" or "torch"; got {brief(names)}')
    state = dict(module.state_dict())
    for kind in ("weight", "bias"):
        parts = _parts(state, kind, [q_rows, kv_rows, kv_rows])
        if parts is not None:
            state |= _as_llama(parts, kind) if names == "llama" else _as_torch(parts, kind)
        if names == "llama" and f"out_proj.{kind}" in state:
            state[f"o_proj.{kind}"] = state.pop(f"out_proj.{kind}")
    if names == "torch":
        _make_both_biases(state)
    return {prefix + name: tensor for name, tensor in state.items()}


def _parts(state: dict[str, Tensor], kind: str, rows: list[int]) -> list[Tensor] | None:
    """The projections of queries, keys and values, taken out of our state dict."""
    if f"in_proj.{kind}" in state:
        return list(state.pop(f"in_proj.{kind}").split(rows))
    if f"kv_proj.{kind}" not in state:
        return None
    return [state.pop(f"q_proj.{kind}"), *state.pop(f"kv_proj.{kind}").split(rows[1:])]


def _as_llama(parts: list[Tensor], kind: str) -> dict[str, Tensor]:
    return {f"{letter}_proj.{kind}": part for letter, part in zip("qkv", parts, strict=True)}


def _as_torch(parts: list[Tensor], kind: str) -> dict[str, Tensor]:
    """In one where their widths are equal, else three weights beside one bias."""
    if kind == "weight" and len({part.shape[1] for part in parts}) > 1:
        return {f"{letter}_proj_weight": part for letter, part in zip("qkv", parts, strict=True)}
    return {f"in_proj_{kind}": torch.cat(parts)}


def _make_both_biases(state: dict[str, Tensor]) -> None:
    """nn.MultiheadAttention has a bias in both projections, or in none."""
    out = state["out_proj.weight"]
    if "in_proj_bias" in state and "out_proj.bias" not in state:
        state["out_proj.bias"] = out.new_zeros(out.shape[0])
    if "out_proj.bias" in state and "in_proj_bias" not in state:
        state["in_proj_bias"] = out.new_zeros(3 * out.shape[1])
