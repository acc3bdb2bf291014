"""`Plan`: how ranks share one sequence, and attention by it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest

from maskloom.attention.backends.base import BackendName
from maskloom.attention.checks import check_options, check_score_mod_fits, checked_tensors
from maskloom.attention.clean_padding import Hidden, cleaned, zero_hidden_gradients
from maskloom.attention.request import Attended
from maskloom.core.checks import head_offset
from maskloom.core.torch_state import uncompiled
from maskloom.core.words import brief
from maskloom.distributed.coordinates import placed_score
from maskloom.distributed.part import Part
from maskloom.distributed.report import Report
from maskloom.distributed.rows import Whole, checked_dim, rows_of, whole_of
from maskloom.distributed.schemes import Scheme, Sizes
from maskloom.masks.algebra import Mask
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.scores.base import ScoreMod


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """How the ranks of a mesh share one sequence. Made by `maskloom.distributed.plan`.

    Attributes:
        mask: of the whole sequence.
        mesh: the ranks.
        length: positions of the whole sequence.
        rows: of each rank: the same number on every one, at least ``ceil(length / ranks)``.
        positions: int64 (rows,), the position of each row of this rank, in its order; -1 for rows that only fill up.
        pads: bool (rows,), True for rows that only fill up.
        batch: the batch rows that the mask is for; None where it is for any number.
        scheme, sizes: what was chosen, and for what.
    """

    mask: Mask
    mesh: DeviceMesh
    length: int
    rows: int
    positions: Tensor
    pads: Tensor
    scheme: Scheme
    sizes: Sizes
    batch: int | None
    _part: Part
    _whole: Whole
    _report: Report

    @property
    def strategy(self) -> str | tuple[str, ...]:
        """What was chosen: "heads", "gather" or "needed"; of a mesh with two dimensions one for each."""
        return self.scheme.names if len(self.scheme.names) > 1 else self.scheme.names[0]

    @property
    def bytes(self) -> int:
        """Bytes that the rank which receives most receives in one forward pass. The backward moves as many again."""
        return self.scheme.bytes

    @property
    def balance(self) -> float:
        """The key tiles that the busiest rank visits, over the mean of all ranks; 1 is even."""
        return self.scheme.balance

    def explain(self) -> str:
        """What every strategy would cost, and why this one was taken."""
        return self._report.explained()

    def __str__(self) -> str:
        return self._report.text()

    def __repr__(self) -> str:
        return f"<plan of {self.mask!r} for {self.length} positions on {self.mesh.size()} ranks: {self.scheme.said}>"

    # -- rows --------------------------------------------------------------------------------------------------------

    def shard(self, x: Tensor, dim: int, fill: float = 0) -> Tensor:
        """This rank's rows of a tensor that every rank has whole: inputs, labels, ids.

        Its gradient is that of this rank's rows, 0 at the others; the sum over ranks is that of the whole.

        Args:
            x: any shape and dtype, ``length`` long in ``dim``.
            dim: the dimension of positions.
            fill: the value of rows that only fill up: -100 for labels.

        Returns:
            x with ``rows`` in the place of ``length``.

        Raises:
            TypeError, IndexError, ValueError: not a tensor, no such dimension, or another length.
        """
        dim = checked_dim(x, dim, self.length, "shard")
        return rows_of(x, dim, fill, self.positions.to(x.device))

    def unshard(self, x: Tensor, dim: int, *, grads: Literal["same", "sum"] = "same") -> Tensor:
        """The whole of a tensor of which every rank has its rows: the inverse of `shard`, on every rank. Collective.

        Args:
            x: any shape, ``rows`` long in ``dim``.
            dim: the dimension of positions.
            grads: how gradients of the whole are counted. "same": every rank computes the same loss from the whole, which
                counts once; each rank's rows get what came to them there, and the backward moves nothing. "sum": every rank
                computes a part of the loss of its own, and gradients of all ranks are summed.

        Returns:
            x with exactly ``length`` in the place of ``rows``, in the order of positions.

        Raises:
            TypeError, IndexError, ValueError: not a tensor, no such dimension, another number of rows, another word.
        """
        dim = checked_dim(x, dim, self.rows, "unshard")
        if grads not in ("same", "sum"):
            raise ValueError(f'grads is "same" or "sum"; got {grads!r}')
        return whole_of(x, dim, self._whole, grads)

    # -- attention ---------------------------------------------------------------------------------------------------

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        score_mod: ScoreMod | None = None,
        scale: float | None = None,
        h_offset: int | None = None,
        backend: BackendName | Literal["auto"] = "auto",
        return_aux: AuxRequest | None = None,
        sinks: Tensor | None = None,
        dropout: float = 0.0,
        dropout_seed: int | Tensor | None = None,
        clean_padding: bool = False,
        deterministic: bool = False,
        allow_slow: bool = False,
        kernel_options: dict[str, Any] | None = None,
    ) -> Any:
        """`maskloom.attend` of the whole sequence: this rank's rows in, this rank's rows out. Collective, backward too.

        Mask, score_mod, sinks and dropout see the batch rows, heads and positions of the whole. A gradient of something
        that ranks share (sinks, tables of a score_mod) is this rank's part; the sum over ranks is the whole gradient.

        Inside torch.compile the graph breaks here, and goes on behind it.

        Args:
            query: (B, H, rows, D). key: (B, Hkv, rows, D). value: (B, Hkv, rows, E). Rows that only fill up may hold
                anything: they are hidden, their output and gradients are 0.
            h_offset: the first of these heads among those that mask and score_mod are for, as in `maskloom.attend`.
            sinks: (H,), of the query's heads.
            dropout_seed: give the same on every rank. None draws one from torch's generator.
            score_mod, scale, backend, return_aux, dropout, clean_padding, deterministic, allow_slow, kernel_options: as in
                `maskloom.attend`.

        Returns:
            (B, H, rows, E); with ``return_aux`` a pair of that and torch's AuxOutput, ``lse`` (B, H, rows).

        Raises:
            TypeError, ValueError: what does not fit, before anything is sent.
        """
        options = {
            "scale": scale, "backend": backend, "dropout": dropout, "dropout_seed": dropout_seed,
            "deterministic": deterministic, "allow_slow": allow_slow, "kernel_options": kernel_options,
        }  # fmt: skip
        return uncompiled(_attended)(
            self, query, key, value, score_mod, h_offset, sinks, return_aux, clean_padding, options
        )

    def hidden(self) -> Hidden | None:
        """Padding of the whole mask at this rank's rows; None where the mask does not say it."""
        keys = known_padding(self.mask, self.length)
        queries = known_hidden_queries(self.mask, self.length)
        if keys is None:
            return None
        return Hidden(self._at_rows(keys), None if queries is None else self._at_rows(queries))

    def _at_rows(self, pads: Tensor) -> Tensor:
        return rows_of(pads, 1, True, self.positions)


def _attended(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    h_offset: int | None,
    sinks: Tensor | None,
    return_aux: AuxRequest | None,
    clean_padding: bool,
    options: dict[str, Any],
) -> Any:
    query, key, value = checked_tensors(query, key, value)
    first = _check_fits(plan, query, key, score_mod, h_offset, (return_aux, sinks, options["kernel_options"]))
    hidden = _known_hidden(plan) if clean_padding else None
    if hidden is not None:
        query, key, value = cleaned(query, key, value, hidden)
    found = _attended_by_part(plan._part, query, key, value, score_mod, first, sinks, return_aux, options)
    if hidden is not None:
        found = zero_hidden_gradients(found, hidden)
    return found.out if return_aux is None else (found.out, AuxOutput(lse=found.lse))


def _attended_by_part(
    part: Part,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    h_offset: int | None,
    sinks: Tensor | None,
    return_aux: AuxRequest | None,
    options: dict[str, Any],
) -> Attended:
    from maskloom.attention.attend import attend  # the chain of imports would be too long

    share = query.shape[1] // part.parts
    first = part.place.part * share
    masks = part.masks(None, h_offset if part.parts == 1 else first + (h_offset or 0))
    sinks = None if sinks is None else sinks[first : first + share]
    own = part.brought(query, key, value)
    attended = attend(
        *own, masks.placing if options["dropout"] else masks.plain, q_offset=0, return_aux=return_aux, sinks=sinks,
        score_mod=None if score_mod is None else placed_score(score_mod, masks.at), **options,
    )  # fmt: skip
    out, aux = attended if return_aux is not None else (attended, None)
    lse = None if aux is None or aux.lse is None else part.back(aux.lse[..., None], -torch.inf)[..., 0]
    return Attended(part.back(out), lse)


def _check_fits(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    score_mod: ScoreMod | None,
    h_offset: int | None,
    options: tuple[AuxRequest | None, Tensor | None, dict[str, Any] | None],
) -> int | None:
    """The first head among those of the plan, of tensors and options that fit it; None: they are all."""
    for name, tensor in (("query", query), ("key", key)):
        if tensor.shape[2] != plan.rows:
            raise ValueError(
                f"{name} has the rows of one rank, (batch, heads, {plan.rows}, head dim); got {tuple(tensor.shape)}"
            )
    if plan.batch is not None and query.shape[0] != plan.batch:
        raise ValueError(f"the plan is for a mask of {plan.batch} batch rows; query is {tuple(query.shape)}")
    if query.device.type != plan.mesh.device_type:
        raise ValueError(f"the plan is for a mesh of {plan.mesh.device_type}; query is on {query.device}")
    check_options(query, *options)
    first = None if h_offset is None else _first_head(plan, query.shape[1], h_offset)
    if h_offset is None and query.shape[1] != plan.sizes.heads:
        raise ValueError(
            f"the plan is for {plan.sizes.heads} query heads; query is {tuple(query.shape)}. Of some of the heads say which, "
            "h_offset= the first"
        )
    if query.shape[1] % plan.scheme.parts:
        raise ValueError(
            f'strategy "heads" gives each rank as many query heads; there are {query.shape[1]} heads and '
            f"{plan.scheme.parts} ranks"
        )
    if score_mod is not None and h_offset is None:
        check_score_mod_fits(score_mod, query.shape[1], query.device)
    return first


def _first_head(plan: Plan, heads: int, h_offset: int) -> int:
    first = head_offset(h_offset)
    if not isinstance(first, int):
        raise TypeError("h_offset of a plan is an int: masks are made for it once")
    if first + heads > plan.sizes.heads:
        raise ValueError(
            f"the plan is for {plan.sizes.heads} query heads; heads {first} to {first + heads - 1} are asked for"
        )
    return first


def _known_hidden(plan: Plan) -> Hidden:
    hidden = plan.hidden()
    if hidden is None:
        raise ValueError(
            "clean_padding needs a mask that says where padding is: lengths, real, padding, key_padding, documents or "
            f"from_dense, alone or joined to others with &; got {brief(plan.mask)}"
        )
    return hidden
