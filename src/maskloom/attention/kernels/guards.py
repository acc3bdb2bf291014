"""What torch.compile asks before each call of a compiled kernel: not what never changes.

torch guards each global that it reads while it traces, down to the code of each function and the entries of each table. That
is half of all guards, and takes longer than all others. The globals of torch and of maskloom are as they were; those of a
user's module are asked for.
"""

from collections.abc import Sequence
from typing import Any


def that_may_fail(entries: Sequence[Any]) -> list[bool]:
    """Which of torch's guards are asked: a ``guard_filter_fn`` of torch.compile for functions of maskloom."""
    return [not _is_of_ours(entry.name) for entry in entries]


def _is_of_ours(source: str) -> bool:
    """Whether a guard is on a global of maskloom, torch or Python, by the source text that reads it."""
    if not source.startswith(_GLOBAL):
        return False
    name = source[len(_GLOBAL) :].partition("'")[0]
    if not name.startswith("__"):  # of the module of the function that is compiled
        return True
    return name in _MODULES or name.startswith(_INSIDE)


_GLOBAL = "G['"
_MODULES = ("__import_torch", "__import_maskloom")
_INSIDE = ("__import_torch_dot_", "__import_maskloom_dot_", "__builtins_dict__")
