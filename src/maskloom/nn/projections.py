"""The parameters of multi-head attention, and queries, keys and values made with them."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskloom.attention.dropout.options import checked_rate
from maskloom.core import captures
from maskloom.core.checks import as_int, check_flags, is_number
from maskloom.core.words import brief
from maskloom.masks.padded import positions_from
from maskloom.nn.packing import Tokens, heads_in_batch, is_plain, may_fill
from maskloom.nn.rotary import Angles, Rotary
from maskloom.nn.state_names import rename_in, renamed
from maskloom.nn.upcoming import Upcoming
from maskloom.scores.softcap import named_softcap

Positions = Tensor | tuple[Tensor | None, Tensor | None]
"""Positions of the tokens of x, (L,) or (B, L); or those of x and those of the context."""


class ProjectedHeads(nn.Module):
    """The base of `MultiheadFlexAttention`, whose docstring says what the arguments are and how parameters are named."""

    in_proj: nn.Linear  # without d_context
    q_proj: nn.Linear  # with it, and the next
    kv_proj: nn.Linear

    def __init__(
        self,
        d_in: int,
        d_out: int,
        n_heads: int,
        bias: bool,
        *,
        n_kv_heads: int | None,
        d_head: int | None,
        d_context: int | None,
        out_bias: bool,
        qk_norm: bool,
        rotary: Rotary | None,
        sinks: bool,
        softcap: float | None,
        gate: bool,
        dropout: float,
        **where: Any,
    ) -> None:
        super().__init__()
        named = (("d_in", d_in), ("d_out", d_out), ("n_heads", n_heads))
        self.d_in, self.d_out, self.n_heads = (_size(name, size) for name, size in named)
        self.n_kv_heads = self.n_heads if n_kv_heads is None else _size("n_kv_heads", n_kv_heads)
        self.d_head = _even_share(self.d_out, self.n_heads) if d_head is None else _size("d_head", d_head)
        self.d_context = None if d_context is None else _size("d_context", d_context)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads is a multiple of n_kv_heads; got n_heads={self.n_heads} and n_kv_heads={self.n_kv_heads}"
            )
        _check_where(**where)
        check_flags(bias=bias, out_bias=out_bias, qk_norm=qk_norm, sinks=sinks, gate=gate)
        self._make_projections(bias, out_bias, gate, where)
        norms = [nn.RMSNorm(self.d_head, eps=1e-6, **where) if qk_norm else None for _ in "qk"]
        self.q_norm, self.k_norm = norms
        self.rotary = _checked_rotary(rotary, self.d_head)
        self.dropout = checked_rate(dropout)
        self.softcap = None if softcap is None else named_softcap("softcap", softcap)
        self.sinks = nn.Parameter(torch.zeros(self.n_heads, **where)) if sinks else None

    def _make_projections(self, bias: bool, out_bias: bool, gate: bool, where: dict[str, Any]) -> None:
        q_rows, kv_rows = self._rows
        if self.d_context is None:
            self.in_proj = nn.Linear(self.d_in, q_rows + 2 * kv_rows, bias=bias, **where)
        else:
            self.q_proj = nn.Linear(self.d_in, q_rows, bias=bias, **where)
            self.kv_proj = nn.Linear(self.d_context, 2 * kv_rows, bias=bias, **where)
        self.out_proj = nn.Linear(q_rows, self.d_out, bias=out_bias, **where)
        self.gate_proj = nn.Linear(self.d_in, q_rows, bias=bias, **where) if gate else None

    @property
    def _rows(self) -> tuple[int, int]:
        """The features of all query heads together, and of all key heads."""
        return self.n_heads * self.d_head, self.n_kv_heads * self.d_head

    # -- queries, keys and values, and back ------------------------------------------------------------------------

    def projected(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, L, d_head), keys and values (B, Hkv, L or K, d_head), after the norm."""
        queries, keys, values = map(self._in_heads, self._projected_apart(x, context))
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = _normed(self.q_norm, queries), _normed(self.k_norm, keys)
        return queries, keys, values

    def _projected_apart(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys and values, all heads side by side: (B, L, H d_head), (B, L or K, Hkv d_head), (.., Hkv d_head).

        They are cut along the last dimension: the gradients of the three are then joined by one copy of whole rows.
        """
        q_rows, kv_rows = self._rows
        if self.d_context is not None:
            return self.q_proj(x), *self.kv_proj(x if context is None else context).split(kv_rows, -1)
        if context is None:
            return self.in_proj(x).split([q_rows, kv_rows, kv_rows], -1)
        if not is_plain(self.in_proj, nn.Linear):
            return self.in_proj(x)[..., :q_rows], *self.in_proj(context)[..., q_rows:].split(kv_rows, -1)
        weight, bias = self.in_proj.weight, self.in_proj.bias
        biases = (None, None) if bias is None else (bias[:q_rows], bias[q_rows:])
        both = nn.functional.linear(context, weight[q_rows:], biases[1])
        return nn.functional.linear(x, weight[:q_rows], biases[0]), *both.split(kv_rows, -1)

    def _in_heads(self, projected: Tensor) -> Tensor:
        """(B, L, n d_head) as (B, n, L, d_head)."""
        return projected.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def angles_of_both(
        self,
        q_shape: tuple[int, int],
        kv_shape: tuple[int, int],
        positions: Positions | None,
        coming: Upcoming | None,
        q_offset: int | Tensor | None,
        device: torch.device,
    ) -> tuple[Angles | None, Angles | None]:
        """The angles of queries (B, L) and of keys (B, K); None without a rotary."""
        rotary, q_len, kv_len = self.rotary, q_shape[1], kv_shape[1]
        if rotary is None:
            return None, None
        q_at, kv_at = _positions_of_both(q_len, kv_len, positions, coming, q_offset, device)
        length = kv_len
        if coming is not None:
            length = coming.longest
        elif rotary.depends_on_length:
            length = max(rotary.length_of(q_at, q_len), rotary.length_of(kv_at, kv_len))
        q_angles = rotary.angles(q_at, q_shape, device, length=length)
        if q_at is kv_at and q_len == kv_len:
            return q_angles, q_angles
        return q_angles, rotary.angles(kv_at, kv_shape, device, length=length)

    def turned(self, heads: Tensor, angles: Angles | None, tokens: Tokens | None) -> Tensor:
        """Queries or keys, turned where there is a rotary: (B, n, L, d_head), or (1, n, R, d_head) of packed ``tokens``."""
        if self.rotary is None or angles is None:
            return heads
        return self.rotary.turned(heads, angles if tokens is None else Angles(*map(tokens.of_table, angles)))

    def turned_in_batch(
        self, heads: Tensor, turned: Tensor, angles: Angles | None, tokens: Tokens | None, *, fills: bool
    ) -> Tensor:
        """The `turned` queries or keys of the whole batch, (B, n, L, d_head).

        Args:
            heads: before they were turned.
            fills: whether the projection makes something of padding, which is 0: it has a bias.
        """
        if tokens is None:
            return turned
        if not fills or self.rotary is None or angles is None:
            return heads_in_batch(turned, tokens, fills=fills)
        padding = heads[:, :, -1:].expand(tokens.shape[0], -1, tokens.shape[1], -1)
        return heads_in_batch(turned, tokens, fills=self.rotary.turned(padding, angles))

    def fills(self, side: Literal["queries", "keys"]) -> bool:
        """Whether queries, or keys, of padding, which is 0, may be something else."""
        layer = self.in_proj if self.d_context is None else self.q_proj if side == "queries" else self.kv_proj
        return may_fill(layer) or may_fill(self.q_norm if side == "queries" else self.k_norm)

    def combined(self, attended: Tensor, x: Tensor, tokens: Tokens | None = None, *, in_row: bool = False) -> Tensor:
        """The output (B, L, d_out) of the heads' attention (B, H, L, d_head), or (1, H, R, d_head) if it was ``in_row``.

        Args:
            x: what the gate reads, (B, L, d_in), or (1, R, d_in) of packed ``tokens``.
        """
        heads = attended.transpose(1, 2)
        heads = (heads if tokens is None or in_row else tokens.taken(heads)).flatten(2)
        if self.gate_proj is not None:
            heads = heads * torch.sigmoid(self.gate_proj(x))
        out = self.out_proj(heads)
        return out if tokens is None else tokens.put_back(out, fills=may_fill(self.out_proj))

    # -- parameters ------------------------------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as torch's layers draw theirs; sinks become 0."""
        for layer in self.children():
            if isinstance(layer, (nn.Linear, nn.RMSNorm)):
                layer.reset_parameters()
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def state_dict_as(self, names: Literal["llama", "torch"], prefix: str = "") -> dict[str, Tensor]:
        """The state dict under other names: the inverse of what `load_state_dict` takes.

        Args:
            names: "llama" for q_proj, k_proj, v_proj and o_proj; "torch" for those of nn.MultiheadAttention.
            prefix: put before each name.

        Raises:
            ValueError: other names; for "torch", a module that has what nn.MultiheadAttention has not.
        """
        if names == "torch":
            self._check_like_torch()
        q_rows, kv_rows = self._rows
        return renamed(self, names, prefix, q_rows=q_rows, kv_rows=kv_rows)

    def _check_like_torch(self) -> None:
        own = {
            "n_kv_heads": self.n_kv_heads != self.n_heads,
            "d_head": self._rows[0] != self.d_out,
            "d_in other than d_out": self.d_in != self.d_out,
            "qk_norm": self.q_norm is not None,
            "sinks": self.sinks is not None,
            "gate": self.gate_proj is not None,
        }
        has = [name for name, there in own.items() if there]
        if has:
            raise ValueError(f"nn.MultiheadAttention has no {', no '.join(has)}; this module has")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        (q_rows, kv_rows), is_fused = self._rows, self.d_context is None
        shapes = (q_rows, self.d_in), (kv_rows, self.d_in if self.d_context is None else self.d_context)
        refused = rename_in(state_dict, prefix, q_shape=shapes[0], kv_shape=shapes[1], is_fused=is_fused)
        own, error_msgs = dict(self.named_parameters()), args[-1]
        for kind, wrong in refused.items():
            error_msgs += wrong
            for layer in ("in_proj",) if is_fused else ("q_proj", "kv_proj"):  # stay as they are, and are not missing
                if f"{layer}.{kind}" in own:
                    state_dict[f"{prefix}{layer}.{kind}"] = own[f"{layer}.{kind}"]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them; of the optional ones those that were given."""
        bias = (self.in_proj if self.d_context is None else self.q_proj).bias is not None
        said = f"d_in={self.d_in}, d_out={self.d_out}, n_heads={self.n_heads}, bias={bias}"
        others = {
            "n_kv_heads": self.n_kv_heads if self.n_kv_heads != self.n_heads else None,
            "d_head": self.d_head if self.n_heads * self.d_head != self.d_out else None,
            "d_context": self.d_context,
            "out_bias": False if self.out_proj.bias is None else None,
            "sinks": None if self.sinks is None else True,
            "dropout": self.dropout or None,
            "softcap": None if self.softcap is None else float(self.softcap.text),
        }
        return ", ".join([said, *(f"{name}={value}" for name, value in others.items() if value is not None)])


def _normed(norm: nn.Module, heads: Tensor) -> Tensor:
    """In the dtype of the heads, which under autocast is not that of the weight: torch's fused kernel takes one alone."""
    if not isinstance(norm, nn.RMSNorm) or not is_plain(norm, nn.RMSNorm) or norm.weight.dtype == heads.dtype:
        return norm(heads)
    return nn.functional.rms_norm(heads, norm.normalized_shape, norm.weight.to(heads.dtype), norm.eps)


def _even_share(d_out: int, n_heads: int) -> int:
    if d_out % n_heads:
        raise ValueError(f"d_out is a multiple of n_heads; got d_out={d_out} and n_heads={n_heads}")
    return d_out // n_heads


def _check_where(device: Any = None, dtype: Any = None) -> None:
    """Raise a TypeError or ValueError for what is no device that is there, and for a dtype that no parameter has."""
    if device is not None:
        captures.checked_device(device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is that of parameters, floating point; got {brief(dtype)}")


def _size(name: str, size: object) -> int:
    if not is_number(size) or as_int(size) < 1:
        raise ValueError(f"{name} is an int, at least 1; got {brief(size)}")
    return as_int(size)


def _checked_rotary(rotary: Rotary | None, d_head: int) -> Rotary | None:
    if rotary is not None and not isinstance(rotary, Rotary):
        raise TypeError(f"rotary is a maskloom.nn.Rotary; got {brief(rotary)}")
    if rotary is not None and rotary.d_head != d_head:
        raise ValueError(f"rotary is for heads of {rotary.d_head} features; these have {d_head}")
    return rotary


def _positions_of_both(
    q_len: int,
    kv_len: int,
    positions: Positions | None,
    coming: Upcoming | None,
    q_offset: int | Tensor | None,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """The positions of queries and of keys; None is 0, 1, ..."""
    if coming is not None:
        return coming.positions, coming.positions
    if isinstance(positions, tuple):
        return positions
    if positions is not None:
        return positions, positions
    return None if q_offset is None else positions_from(q_offset, q_len, device), None
