"""What a plan says of itself."""

from typing import NamedTuple

from maskloom.distributed.sharing.scheme import Scheme, Sizes


class Report(NamedTuple):
    """What was chosen, out of what.

    Attributes:
        chosen: one of ``schemes``.
        schemes: all that could be.
        refused: why others could not.
        named: whether the user named the strategy.
        overlaps: whether keys come in while a rank attends to its own.
    """

    chosen: Scheme
    schemes: tuple[Scheme, ...]
    refused: dict[str, str]
    named: bool
    unit: int
    sizes: Sizes
    overlaps: bool = False

    def text(self) -> str:
        """What ``print(plan)`` shows."""
        scheme, sizes = self.chosen, self.sizes
        lines = [
            f"strategy: {scheme.said} ({self._why()})",
            f"length: {sizes.length} positions in {len(scheme.loads)} times {scheme.rows} rows",
            f"queries: {self._order()}",
            f"bytes: {_amount(scheme.bytes)} received by the rank that receives most, in a forward pass; {self._counted()}",
            f"balance: {scheme.balance:.3f}, the tiles of the busiest rank over the mean",
            "rank  tiles x heads  received",
            *(
                f"{rank:4d}  {load:13d}  {_amount(received)}"
                for rank, (load, received) in enumerate(zip(scheme.loads, scheme.received, strict=True))
            ),
        ]
        return "\n".join(lines)

    def explained(self) -> str:
        """What every strategy would cost."""
        lines = [self.text(), "strategy  balance  received  estimate"]
        for scheme in self.schemes:
            seconds = scheme.seconds(self.unit, self.sizes)
            lines.append(f"{scheme.said}  {scheme.balance:.3f}  {_amount(scheme.bytes)}  {seconds * 1e3:.2f} ms")
        lines += [f"not {name}: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)

    def _why(self) -> str:
        if self.named:
            return "asked for"
        if len(self.schemes) == 1:
            return "the only one that can be"
        return "the least estimate of computing and receiving"

    def _order(self) -> str:
        scheme = self.chosen
        if scheme.assignment is None:
            return "in order"
        meanwhile = "; keys come in while own ones are attended to" if self.overlaps else ""
        return f"tiles of {self.unit} positions, {scheme.assignment.how}{meanwhile}"

    def _counted(self) -> str:
        sizes = self.sizes
        return f"of {sizes.batch} batch rows, heads of {sizes.head_dim} features, {sizes.itemsize} bytes a number"


def _amount(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
