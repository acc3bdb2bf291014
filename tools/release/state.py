"""What is to be released, and what forbids it: read from the repository, before any work."""

import ast
import datetime
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION_IN = "src/maskloom/__init__.py"
_ENTRY = re.compile(r"^## (?P<name>\S+)(?: - (?P<date>.*))?$", re.MULTILINE)


class RefusedError(Exception):
    """The release cannot be made; one line for each reason."""


@dataclass(frozen=True)
class Release:
    """A version, the commit that it is made of, and the date that its files bear.

    Attributes:
        date: that of the CHANGELOG's entry; of the commit, where there is none.
        problems: what forbids to release it, a line for each.
    """

    version: str
    commit: str
    date: datetime.date
    problems: tuple[str, ...]

    @property
    def tag(self) -> str:
        return f"v{self.version}"

    @property
    def epoch(self) -> int:
        """SOURCE_DATE_EPOCH: midnight of the date, UTC."""
        return int(datetime.datetime.combine(self.date, datetime.time(), datetime.UTC).timestamp())


def release_of(root: Path, today: datetime.date) -> Release:
    """What the checkout at ``root`` would release.

    Raises:
        RefusedError: it is no checkout of git, or it has no version.
    """
    try:
        commit = git(root, "rev-parse", "HEAD")
    except (subprocess.CalledProcessError, OSError):
        raise RefusedError(f"{root} is no checkout of git with a commit: a release is made of a commit") from None
    version = version_of(root)
    entries = entries_of(root)
    date = _date(entries.get(version, ("", ""))[0]) or datetime.date.fromisoformat(
        git(root, "log", "-1", "--format=%cs")
    )
    problems = (
        *_of_version(root, version),
        *_of_changelog(version, entries, today),
        *_of_citation(root, version, date),
    )
    return Release(version, commit, date, (*_of_tree(root), *problems))


def version_of(root: Path) -> str:
    """``__version__`` of the package, the one place where the version stands."""
    for node in ast.parse((root / VERSION_IN).read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "__version__"
        ):
            return str(ast.literal_eval(node.value))
    raise RefusedError(f"{VERSION_IN} has no __version__")


def entries_of(root: Path) -> dict[str, tuple[str, str]]:
    """Date and text of each entry of the CHANGELOG by version, in its order; "Unreleased" too."""
    text = (root / "CHANGELOG.md").read_text()
    found = list(_ENTRY.finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    return {
        match["name"]: (match["date"] or "", text[match.end() : end].strip())
        for match, end in zip(found, ends, strict=True)
    }


def git(root: Path, *words: str) -> str:
    """What a command of git prints."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _of_tree(root: Path) -> Iterator[str]:
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        names = ", ".join(line[2:].strip() for line in changed[:5]) + (", ..." if len(changed) > 5 else "")
        yield f"the tree has changes that are not committed: {names}"


def _of_version(root: Path, version: str) -> Iterator[str]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"a version is three numbers, such as 0.2.0; {VERSION_IN} has {version!r}"
    if git(root, "tag", "--list", f"v{version}"):
        yield f"the tag v{version} exists: {version} is released. Put the next version into {VERSION_IN}"


def _of_changelog(version: str, entries: dict[str, tuple[str, str]], today: datetime.date) -> Iterator[str]:
    wanted = f"## {version} - {today}"
    if entries.get("Unreleased", ("", ""))[1]:
        yield f'CHANGELOG.md has lines under "Unreleased": move them under "{wanted}"'
    released = [name for name in entries if name != "Unreleased"]
    if version not in entries:
        yield f'CHANGELOG.md has no entry "{wanted}"'
        return
    if released[0] != version:
        yield f"CHANGELOG.md has {released[0]} before {version}: the newest version comes first"
    date, text = entries[version]
    found = _date(date)
    if found is None:
        yield f'in CHANGELOG.md the entry has no date: "{wanted}"; got {date!r}'
    elif found > today:
        yield f"in CHANGELOG.md the entry of {version} is of {found}, which is after today, {today}"
    if not text:
        yield f"in CHANGELOG.md the entry of {version} is empty"


def _of_citation(root: Path, version: str, date: datetime.date) -> Iterator[str]:
    cited = dict(re.findall(r"^([\w-]+): *[\"']?(.*?)[\"']? *$", (root / "CITATION.cff").read_text(), re.MULTILINE))
    for name, value in (("version", version), ("date-released", str(date))):
        if cited.get(name) != value:
            yield f"CITATION.cff has {name}: {cited.get(name)}; it is {value}"


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None
