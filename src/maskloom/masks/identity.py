"""Entries kept beside objects, found by identity, gone with them."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from maskloom.masks.forks import fork_safe_lock

E = TypeVar("E")

# One for all tables, which a thread may take twice: objects are freed at any time, with any of the tables locked.
_lock = fork_safe_lock()


class IdentityTable(Generic[E]):
    """One entry for each object, for as long as the object lives. Threads may share a table.

    An entry must not hold its object, or neither would ever go.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[object], E]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, source: object) -> E | None:
        """The entry of this very object, or None."""
        found = self._entries.get(id(source))
        return found[1] if found is not None and found[0]() is source else None

    def put(self, source: object, entry: E) -> None:
        """Keep ``entry`` for ``source``, in place of the one that it had.

        Raises:
            TypeError: an object with slots and no place for weak references.
        """
        reference = weakref.ref(source, self._forget(id(source)))
        with _lock:
            self._entries[id(source)] = reference, entry

    def _forget(self, address: int) -> Callable[[weakref.ref[object]], None]:
        lock = _lock  # at the end of the process objects outlive this module's names

        def forget(reference: weakref.ref[object]) -> None:
            with lock:
                found = self._entries.get(address)
                if found is not None and found[0] is reference:  # another object may have the address by now
                    del self._entries[address]

        return forget
