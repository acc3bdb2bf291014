"""`page`: a mask as a page to explore, in one file."""

import errno
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core.words import brief
from maskloom.program.program import MaskMod
from maskloom.show.explorer.parts import Parts, parts_of
from maskloom.show.figures import checked_title, write_whole
from maskloom.show.measure.selection import Which

SUFFIXES = (".html", ".htm")
_HEIGHT = 640  # pixels in a notebook


@dataclass(frozen=True)
class Page:
    """A page to explore: a notebook shows it, `save` writes it.

    Attributes:
        html: the whole page, which needs no other file and no network.
    """

    html: str

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file: an existing one is replaced only when the new one is complete.

        Args:
            path: a .html or .htm file. Missing parent directories are made.

        Returns:
            ``path`` as a Path.

        Raises:
            ValueError: another suffix. OSError: ``path`` cannot be written; the error names it.
        """
        path = checked_path(path)

        def write(unfinished: Path) -> None:
            with open(unfinished, "xb") as file:
                file.write(self.html.encode("utf-8"))

        write_whole("the page", path, write)
        return path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, from which it cannot reach the notebook."""
        style = f"width:100%;height:{_HEIGHT}px;border:0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(self.html)}"></iframe>'

    def __repr__(self) -> str:
        return f"Page({len(self.html):,} bytes of HTML)"


@overload
def page(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    scores: Tensor | None = None,
    batch: Which | None = None,
    heads: Which | None = None,
    block_size: int | tuple[int, int] | None = None,
    title: str | None = None,
    path: None = None,
) -> Page: ...


@overload
def page(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    scores: Tensor | None = None,
    batch: Which | None = None,
    heads: Which | None = None,
    block_size: int | tuple[int, int] | None = None,
    title: str | None = None,
    path: str | os.PathLike[str],
) -> Path: ...


def page(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    scores: Tensor | None = None,
    batch: Which | None = None,
    heads: Which | None = None,
    block_size: int | tuple[int, int] | None = None,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Page | Path:
    """A mask as a page to explore in a browser: from the whole down to single elements, in one file without network.

    The page evaluates elements itself, by the operations of the mask. Pointing at a pair tells its query, key, tokens and
    documents, the state of its tile, the value of each operand, and which operands alone decide the result; operands can be
    switched off. A mask with operations whose numbers a browser does not give exactly is drawn by cells that are measured
    here, and the page says so.

    Args:
        mask: a Mask, a mask_mod, a BlockMask (its tables and its mask_mod together), or a table as in `attend`.
        q_len, kv_len: Q and K, in positions. By default those of the BlockMask, of ``scores``, of the tables that the mask
            reads, or the number of tokens; one is for both.
        tokens: Q labels of the queries; also of the keys if Q = K.
        key_tokens: K labels of the keys, if they differ.
        scores: weights of attention (B, H, Q, K), (H, Q, K) or (Q, K), floating point, on any device; B or H of 1 is for
            all. They are a second layer: single weights up to 2,048 tokens, means of cells above, or where there are many
            heads.
        batch, heads: the batch rows and heads that the page has: one, several, or "all". By default all, if the mask or
            the scores say how many there are, else 0.
        block_size: positions of a tile, one number or (queries, keys): those of a BlockMask, else 128.
        title: by default the mask.
        path: a .html or .htm file to write; checked before anything is computed.

    Returns:
        A `Page`, which a notebook displays and whose ``save`` writes it; with ``path`` that path, as a Path.

    Raises:
        TypeError, ValueError: not a mask, lengths that are unknown or do not fit, labels or scores of another number, a
            batch row or head that does not exist, another suffix, or more than a page has room for (5 MB): the error says
            how much that would be.
        OSError: ``path`` cannot be written.
    """
    checked = None if path is None else checked_path(path)
    found = parts(
        mask, q_len, kv_len, tokens=tokens, key_tokens=key_tokens, scores=scores, batch=batch, heads=heads,
        block_size=block_size, title=title,
    )  # fmt: skip
    made = Page(found.html)
    return made if checked is None else made.save(checked)


def parts(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    scores: Tensor | None = None,
    batch: Which | None = None,
    heads: Which | None = None,
    block_size: int | tuple[int, int] | None = None,
    title: str | None = None,
) -> Parts:
    """The parts of a page, for a site that shows several masks with one script: see `Parts`. Arguments as in `page`."""
    from maskloom.show.explorer.model import model_of
    from maskloom.show.explorer.subject import subject_of

    title = checked_title(title)
    subject = subject_of(
        mask, q_len, kv_len, batch=batch, heads=heads, block_size=block_size, tokens=tokens, key_tokens=key_tokens,
        scores=scores,
    )  # fmt: skip
    return parts_of(model_of(subject, title))


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path that a page can be written to, as far as it can be known before.

    Raises:
        TypeError: no path. ValueError: another suffix. OSError: a directory, or a directory that cannot be written to.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is a .html or .htm file, text or a Path; got {type(path).__name__}: {brief(path)}")
    found = Path(path)
    if found.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a page is saved as .html or .htm; got suffix {found.suffix!r} in {str(found)!r}")
    there = next(parent for parent in found.absolute().parents if parent.exists())
    if found.is_dir():
        raise _unwritable(errno.EISDIR, found)
    if not there.is_dir():
        raise _unwritable(errno.ENOTDIR, found)
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(errno.EACCES, found)
    return found


def _unwritable(number: int, path: Path) -> OSError:
    return OSError(number, f"cannot write the page: {os.strerror(number)}", str(path))
