"""The pages of the API: each public name, from its docstring."""

import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import maskloom as loom


@dataclass(frozen=True)
class Entry:
    """A public name: where it is reached, what it is, and where its definition stands in the source."""

    space: str
    name: str
    value: Any

    @property
    def public(self) -> str:
        return f"{self.space}.{self.name}"

    @property
    def defined(self) -> str:
        made = self.value if hasattr(self.value, "__qualname__") else type(self.value)
        return f"{made.__module__}.{made.__qualname__}"

    @property
    def summary(self) -> str:
        """The first sentence of its docstring, in one line of a table."""
        words = inspect.getdoc(self.value) or ""
        return words.split("\n\n")[0].split(". ")[0].replace("\n", " ").replace("|", "\\|").rstrip(".:")


PAGES = {
    "attention": ("maskloom", "Attention"),
    "masks": ("maskloom.masks", "Masks"),
    "blocks": ("maskloom.blocks", "Block masks"),
    "scores": ("maskloom.scores", "Score mods"),
    "batches": ("maskloom.batches", "Batches"),
    "nn": ("maskloom.nn", "Modules"),
    "distributed": ("maskloom.distributed", "Several GPUs"),
    "show": ("maskloom.show", "Pictures"),
    "integrations": ("maskloom.integrations.transformers", "Hugging Face"),
    "testing": ("maskloom.testing", "Testing"),
}
"""The page of each namespace, with its title. What is at the top alone stands on the page of attention."""


def entries(page: str) -> list[Entry]:
    """The names that a page shows, in the order of its namespace."""
    space = PAGES[page][0]
    module = importlib.import_module(space)
    names = [name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)]
    found = [Entry(space, name, getattr(module, name)) for name in names]
    return [entry for entry in found if module is not loom or not _has_namespace(entry)]


def _has_namespace(entry: Entry) -> bool:
    """Whether a name at the top is short for one in a namespace."""
    spaces = [importlib.import_module(space) for page, (space, _) in PAGES.items() if page != "attention"]
    return any(getattr(space, entry.name, None) is entry.value for space in spaces if entry.name in space.__all__)


def pages() -> dict[str, str]:
    """Every page of the API, by its place in the site."""
    found = {f"api/{page}.md": _page(page) for page in PAGES}
    return {"api/index.md": _index(), **found}


def anchors() -> dict[str, str]:
    """The anchor of each public name's definition, by the name alone: what docstrings call it."""
    return {entry.name: entry.defined for page in PAGES for entry in entries(page) if not _is_constant(entry)}


def _index() -> str:
    lines = ["# API", "", _HEAD, ""]
    for page, (space, title) in PAGES.items():
        lines += [f"## {title}", "", f"`{space}`: [all of it]({page}.md)", "", "| | |", "|---|---|"]
        lines += [f"| [`{entry.name}`]({page}.md#{_anchor(entry)}) | {entry.summary} |" for entry in entries(page)]
        lines.append("")
    return "\n".join(lines)


_HEAD = """Every public name, with the first sentence of its docstring. Names at the top, such as `loom.causal`, are those of
`maskloom.masks` and the other namespaces, for short: `import maskloom as loom`.

Letters in shapes: B batch, H query heads, Hkv key-value heads, Q query length, K key length, D head dim, E value dim."""


def _anchor(entry: Entry) -> str:
    return entry.public if _is_second(entry) or _is_constant(entry) else entry.defined


def _page(page: str) -> str:
    space, title = PAGES[page]
    words = inspect.getdoc(importlib.import_module(space)) or ""
    lines = [f"# {title}", "", f"`{space}`", "", words.split("\n\n")[0] if page != "attention" else "", ""]
    for heading, found in _groups(page):
        lines += [f"## {heading}", ""] if heading else []
        for entry in found:
            lines += [_section(entry, level=3 if heading else 2), ""]
    return "\n".join(lines)


def _groups(page: str) -> list[tuple[str, list[Entry]]]:
    """Masks stand by their rooms; other pages have one group."""
    found = entries(page)
    if page != "masks":
        return [("", found)]
    rooms = {name: room for room in importlib.import_module("maskloom.masks.patterns").ROOMS for name in room.__all__}
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        room = rooms.get(entry.name)
        words = (room.__doc__ or "").split("\n")[0].rstrip(".") if room else "Any mask"
        groups.setdefault(words, []).append(entry)
    return list(groups.items())


def _section(entry: Entry, level: int) -> str:
    if _is_second(entry):
        return f"{'#' * level} `{entry.name}` {{ #{entry.public} }}\n\nThe same as `{entry.value.__name__}`."
    if _is_constant(entry):
        return f"{'#' * level} `{entry.name}` {{ #{entry.public} }}\n\n`{entry.value!r}`"
    options = f"    options:\n      heading_level: {level}\n      heading: {entry.name}\n      toc_label: {entry.name}"
    return f"::: {entry.defined}\n{options}"


def _is_second(entry: Entry) -> bool:
    return getattr(entry.value, "__name__", entry.name) != entry.name


def _is_constant(entry: Entry) -> bool:
    return isinstance(entry.value, tuple)
