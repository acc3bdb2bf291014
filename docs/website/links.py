"""Links of the site: headings have the anchors of a forge, and what lies outside docs/ has a page of its own."""

import posixpath
import re
from collections.abc import Callable, Iterable

CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
PAGES = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE": "project/license.md",
}
"""Files beside docs/ that are pages of the site, and where they stand in it."""


def slug(title: str, separator: str = "-") -> str:
    """The anchor of a heading as a forge makes it, so that a link is right in both places."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


def place_of(path: str) -> str:
    """Where a file of the repository stands in the site: ``docs/x.md`` is x.md, an example is its source as a page."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PAGES:
        return PAGES[path]
    if path.endswith(".csv"):
        return f"source/{path}"
    name = posixpath.basename(path)
    return f"source/{path}.md" if "." in name else f"source/{path}/index.md"


def outside(text: str, folder: str) -> set[str]:
    """The files of the repository outside docs/ that a page in a folder of it links to."""
    targets = {_absolute(path, folder) for _, path, _ in LINK.findall(CODE.sub("", text))}
    return {target for target in targets if not target.startswith(("docs/", ".."))}


def rewritten(text: str, folder: str, place: str) -> str:
    """A page's text with its links as they are in the site. folder: the page's in the repository; place: the page's in the site."""
    here = posixpath.dirname(place)

    def moved(link: re.Match[str]) -> str:
        target = _absolute(link[2], folder)
        if target.startswith(".."):
            return link[0]
        return f"{link[1]}{posixpath.relpath(place_of(target), here or '.')}{link[3]}"

    return _beside_code(text, lambda prose: LINK.sub(moved, prose))


def _absolute(path: str, folder: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))


def _beside_code(text: str, change: Callable[[str], str]) -> str:
    parts: list[str] = []
    end = 0
    for fence in CODE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def unescaped(text: str) -> str:
    """Bars in code of tables without the backslash that a forge needs: Python's Markdown would show it."""
    code = re.compile(r"`[^`\n]*`")
    return re.sub(
        r"^\|.*$", lambda row: code.sub(lambda found: found[0].replace("\\|", "|"), row[0]), text, flags=re.MULTILINE
    )


def all_outside(pages: Iterable[tuple[str, str]]) -> set[str]:
    """What the pages, each its text and its folder, link to outside docs/."""
    return {target for text, folder in pages for target in outside(text, folder)}
