"""Files outside docs/ as pages of the site: the source of an example, a folder of it, the rows that figures come from."""

from collections.abc import Iterator
from pathlib import Path

from docs.website import links

ROOT = Path(__file__).parents[2]
_LANGUAGES = {".py": "python", ".toml": "toml"}
_EXAMPLES = ("article", "packed_training", "decoding", "hugging_face", "your_own_mask", "context_parallel", "train_lm")


def sources() -> Iterator[tuple[str, str]]:
    """Every such page, as its place in the site and its text."""
    for path in sorted(_wanted()):
        file = ROOT / path
        if file.is_dir():
            yield links.place_of(path), _folder(path, file)
        elif path.endswith(".md") or path == "LICENSE":
            yield links.place_of(path), _page(path, file.read_text())
        else:
            text = file.read_text()
            yield links.place_of(path), text if path.endswith(".csv") else _source(path, text)


def _wanted() -> set[str]:
    """What pages link to, the pages beside docs/ and what they link to, and the files of folders."""
    docs = [(page.read_text(), str(page.parent.relative_to(ROOT))) for page in (ROOT / "docs").rglob("*.md")]
    beside = {path for path in links.PAGES if (ROOT / path).exists()}
    docs += [((ROOT / path).read_text(), "") for path in beside if path.endswith(".md")]
    found = links.all_outside(docs) | beside | {f"examples/{name}.py" for name in _EXAMPLES}
    inside = {str(file.relative_to(ROOT)) for path in found if (ROOT / path).is_dir() for file in _files(ROOT / path)}
    return {path for path in found | inside if (ROOT / path).exists()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in {".py", ".csv"})


def _page(path: str, text: str) -> str:
    text = text if path.endswith(".md") else f"# License\n\n```text\n{text}\n```\n"
    head = _UNSEARCHED if path == "README.md" else ""
    return head + links.rewritten(text, "", links.place_of(path))


def _source(path: str, text: str) -> str:
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"{_UNSEARCHED}# {path}\n\n````{language}\n{text}````\n"


def _folder(path: str, folder: Path) -> str:
    lines = [f"- [{file.name}]({file.name}{'' if file.suffix == '.csv' else '.md'})" for file in _files(folder)]
    return "\n".join([f"{_UNSEARCHED}# {path}", "", *lines, ""])


_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
