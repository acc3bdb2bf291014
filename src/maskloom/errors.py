"""maskloom's own errors. Other bad input raises ValueError or TypeError, as in torch."""

from collections.abc import Iterator
from contextlib import contextmanager


class FallbackError(RuntimeError):
    """The fused kernel would not have run, and something much slower would have run in its place."""


class ParseError(ValueError):
    """A text that is not a mask; the message marks the place."""


class MissingPackageError(ModuleNotFoundError):
    """A package is not installed that only some parts of maskloom need; the message has the line that installs it."""


EXTRAS = {"matplotlib": "show", "typer": "cli", "rich": "cli", "transformers": "transformers"}
"""Packages that the library itself does not need, and the extra of maskloom that installs each."""


@contextmanager
def needed_by(part: str) -> Iterator[None]:
    """Around imports: a package of `EXTRAS` that is not installed is a MissingPackageError.

    Args:
        part: what needs the package, as the message names it: "a picture", say.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        line = f'pip install "maskloom[{EXTRAS[error.name]}]"'
        raise MissingPackageError(
            f"{part} needs {error.name}, which is not installed: {line}", name=error.name
        ) from None
