"""`Plan`: how ranks share one sequence, and attention by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Never, Unpack, overload

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest

from maskloom.attention.backends.base import BackendName, SharedOptions
from maskloom.attention.clean_padding import Hidden
from maskloom.core import captures
from maskloom.core.torch_state import uncompiled
from maskloom.core.words import repr_html
from maskloom.distributed.attending import Asked, attended
from maskloom.distributed.dtensors import of_local
from maskloom.distributed.exchange.packing import refuse_transforms
from maskloom.distributed.exchange.rows import Whole, checked_dim, checked_fill, rows_of, whole_of
from maskloom.distributed.part import Part
from maskloom.distributed.report import Report
from maskloom.distributed.sharing.scheme import Scheme, Sizes
from maskloom.distributed.tensor_kinds import Comparison
from maskloom.masks.algebra import Mask
from maskloom.nn.shared_sequence import SharedSequence
from maskloom.scores.base import ScoreMod


@dataclass(frozen=True, eq=False, repr=False)
class Plan(SharedSequence):
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
        hidden: padding of the mask at this rank's rows; None where the mask does not say it.
        part: what this rank does.
        comparison: whether ranks have compared what they give to `attend`.
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
    hidden: Hidden | None
    part: Part
    comparison: Comparison
    _whole: Whole
    _report: Report
    q_offset: int = 0

    @property
    def strategy(self) -> str | tuple[str, ...]:
        """What was chosen: "heads", "gather" or "needed"; of a mesh with two dimensions one for each."""
        return self.scheme.names if len(self.scheme.names) > 1 else self.scheme.names[0]

    @property
    def bytes(self) -> int:
        """Bytes that the rank which receives most receives in one forward pass. The backward moves as many again, over all ranks together."""
        return self.scheme.bytes

    @property
    def balance(self) -> float:
        """The key tiles that the busiest rank visits, over the mean of all ranks; 1 is even."""
        return self.scheme.balance

    def explain(self) -> str:
        """What every strategy would cost, and why this one was taken."""
        return self._report.explained()

    def _repr_html_(self) -> str:
        return repr_html(self)

    def __copy__(self) -> "Plan":
        """Itself: a plan does not change, and a copy of a model exchanges by the same groups."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plan":
        return self

    def __reduce__(self) -> Never:
        raise TypeError(
            "cannot pickle a plan, whose groups are this process's: ask for it in each, maskloom.distributed.plan(...)"
        )

    def __str__(self) -> str:
        return self._report.text()

    def __repr__(self) -> str:
        return f"<plan of {self.mask!r} for {self.length} positions on {self.mesh.size()} ranks: {self.scheme.said}>"

    # -- rows --------------------------------------------------------------------------------------------------------

    def shard(self, x: Tensor, dim: int, fill: float = 0) -> Tensor:
        """This rank's rows of a tensor that every rank has whole: inputs, labels, ids.

        Its gradient is that of this rank's rows, 0 at the others; the sum over ranks is that of the whole.

        Args:
            x: any shape and dtype, ``length`` long in ``dim``. A DTensor that shares other dimensions gives one that shares them.
            dim: the dimension of positions.
            fill: the value of rows that only fill up: -100 for labels.

        Returns:
            x with ``rows`` in the place of ``length``.

        Raises:
            TypeError, IndexError, ValueError: not a tensor, no such dimension, another length, or a ``fill`` that the dtype does
                not have (-100 in uint8).
        """
        if captures.is_dtensor(x):
            return of_local("shard", x, dim, lambda own: self.shard(own, dim, fill))
        dim = checked_dim(x, dim, self.length, "shard")
        return rows_of(x, dim, checked_fill(fill, x.dtype), self.positions.to(x.device))

    def unshard(self, x: Tensor, dim: int, *, grads: Literal["same", "sum"] = "same") -> Tensor:
        """The whole of a tensor of which every rank has its rows: the inverse of `shard`, on every rank. Collective.

        Args:
            x: any shape, ``rows`` long in ``dim``. A DTensor that shares other dimensions gives one that shares them.
            dim: the dimension of positions.
            grads: how gradients of the whole are counted. "same": every rank computes the same loss from the whole, which
                counts once; each rank's rows get what came to them there, and the backward moves nothing. "sum": every rank
                computes a part of the loss of its own, and gradients of all ranks are summed.

        Returns:
            x with exactly ``length`` in the place of ``rows``, in the order of positions.

        Raises:
            TypeError, IndexError, ValueError: not a tensor, no such dimension, another number of rows, another word.
        """
        if captures.is_dtensor(x):
            return of_local("unshard", x, dim, lambda own: self.unshard(own, dim, grads=grads))
        dim = checked_dim(x, dim, self.rows, "unshard")
        if grads not in ("same", "sum"):
            raise ValueError(f'grads is "same" or "sum"; got {grads!r}')
        if self.mesh.size() > 1:
            refuse_transforms("plan.unshard", x)
        return whole_of(x, dim, self._whole, grads)

    # -- attention ---------------------------------------------------------------------------------------------------

    @overload
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        h_offset: int | None = None,
        return_aux: None = None,
        **options: Unpack[SharedOptions],
    ) -> Tensor: ...

    @overload
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        h_offset: int | None = None,
        return_aux: AuxRequest,
        **options: Unpack[SharedOptions],
    ) -> tuple[Tensor, AuxOutput]: ...

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
        kernel_options: Mapping[str, object] | None = None,
    ) -> Tensor | tuple[Tensor, AuxOutput]:
        """`maskloom.attend` of the whole sequence: this rank's rows in, this rank's rows out. Collective, backward too.

        Mask, score_mod, sinks and dropout see the batch rows, heads and positions of the whole. A gradient of something
        that ranks share (sinks, tables of a score_mod) is this rank's part; the sum over ranks is the whole gradient.

        The first call on a mesh, for each ``heads``, ``batch``, ``head_dim`` and size of ``dtype`` that was planned for, compares among the
        ranks what must be the same on all: dtype, batch size, heads, key heads, head dims, offsets. Later calls compare nothing, so that none
        waits: there they must be the same, too.

        Inside torch.compile the graph breaks here, and goes on behind it.

        Args:
            query: (B, H, rows, D). key: (B, Hkv, rows, D). value: (B, Hkv, rows, E). Rows that only fill up may hold
                anything: they are hidden, their output and gradients are 0.
                DTensors that share batch rows or heads (tensor parallel) are taken too: their offsets are known, and the
                output is shared as the query is.
            h_offset: the first of these heads among those that mask and score_mod are for, as in `maskloom.attend`.
            sinks: (H,), of the query's heads.
            dropout_seed: give the same on every rank. None draws one from torch's generator.
            score_mod, scale, backend, return_aux, dropout, clean_padding, deterministic, allow_slow, kernel_options: as in
                `maskloom.attend`.

        Returns:
            (B, H, rows, E); with ``return_aux`` a pair of that and torch's AuxOutput, ``lse`` (B, H, rows).

        Raises:
            TypeError, ValueError: what does not fit, before anything is exchanged. At a call that compares also, on every rank,
                what differs among ranks, or what another rank refuses.
        """
        options = {
            "scale": scale, "backend": backend, "dropout": dropout, "dropout_seed": dropout_seed,
            "deterministic": deterministic, "allow_slow": allow_slow, "kernel_options": kernel_options,
        }  # fmt: skip
        asked = Asked(score_mod, sinks, return_aux, clean_padding, options)
        return uncompiled(attended)(self, query, key, value, h_offset, asked)

    @property
    def hidden_rows(self) -> Tensor:
        """bool (B or 1, rows), True for padding that the mask hides from queries and keys, and for rows that only fill up."""
        if self.hidden is None:
            return self.pads[None]
        keys, queries = self.hidden
        return keys if queries is None else keys & queries
