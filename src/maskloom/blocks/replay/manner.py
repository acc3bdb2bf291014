"""How block masks are built at present: whether anything is recorded for the next one, and whether the device may be waited for."""

import threading


class _Manner(threading.local):
    """How this thread builds block masks at present."""

    is_recorded = True
    exact = True


manner = _Manner()


class built_once:  # noqa: N801 - a context manager, written out
    """A context in which building a block mask records nothing for the next one: who asks for it records all that it needs.

    Args:
        exact: what `exact_now` says in it.
    """

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact

    def __enter__(self) -> None:
        self._before = manner.is_recorded, manner.exact
        manner.is_recorded, manner.exact = False, self._exact

    def __exit__(self, *_: object) -> None:
        manner.is_recorded, manner.exact = self._before


def exact_now() -> bool:
    """Whether the block mask that attention builds of a mask is to be exact, for which the device may be waited for."""
    return manner.exact
