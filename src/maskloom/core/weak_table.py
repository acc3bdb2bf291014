"""Entries stored beside objects, found by identity, and freed with them."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

E = TypeVar("E")


class IdentityTable(Generic[E]):
    """One entry for each object, as long as the object lives. Threads may share a table.

    An entry must not hold its object, or neither would ever be freed. There is no lock, since objects are freed at any
    time: each step is atomic. At worst an entry is lost, and is computed again.
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
        """Store ``entry`` for ``source``; it replaces the entry that was there.

        Raises:
            TypeError: an object with slots and without ``__weakref__``.
        """
        found = self._entries.get(id(source))
        known = found is not None and found[0]() is source
        reference = found[0] if found is not None and known else weakref.ref(source, self._forget(id(source)))
        self._entries[id(source)] = reference, entry

    def _forget(self, address: int) -> Callable[[weakref.ref[object]], None]:
        entries = self._entries

        def forget(reference: weakref.ref[object]) -> None:
            found = entries.get(address)
            if found is not None and found[0] is reference:  # another object may have the same id by now
                entries.pop(address, None)

        return forget
