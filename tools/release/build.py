"""Builds the sdist and the wheel of a commit, in situations that must not matter, and compares them byte by byte."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tools.release.compare import differences

_HOOKS = Path(__file__).with_name("hooks.py")


class BuildError(Exception):
    """A build failed, or two builds differ; the message says how."""


@dataclass(frozen=True)
class Situation:
    """Where and when a build runs: nothing of it may show in what is built.

    Attributes:
        folder: the path of the sources below a temporary folder.
        umask: of their files, and of the build.
        shift: seconds that its clock, and the times of its files, are ahead.
        environment: time zone, locale and the seed of hashes.
    """

    folder: str
    umask: int
    shift: int
    environment: dict[str, str]


class Built(NamedTuple):
    """The two files, and the folder of the sources that they were built from."""

    sdist: Path
    wheel: Path
    sources: Path


SITUATIONS = (
    Situation("a", 0o022, 0, {"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1"}),
    Situation("another/place/maskloom-1.0", 0o077, -40_000_000, {"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"}),
    Situation("a third", 0o002, 86_400, {"TZ": "America/St_Johns", "PYTHONHASHSEED": "3"}),
)  # fmt: skip


def build(root: Path, commit: str, epoch: int, work: Path) -> Built:
    """The sdist and the wheel of a commit, equal from every situation, and the wheel equal to that of the sdist.

    Raises:
        BuildError: they differ, or a build failed.
    """
    pairs = [_build_in(situation, root, commit, epoch, work) for situation in SITUATIONS]
    first = pairs[0]
    for situation, pair in zip(SITUATIONS[1:], pairs[1:], strict=True):
        for one, other in zip(first, pair, strict=True):
            _equal(one, other, f"in the folder {situation.folder!r} with umask {situation.umask:03o} and another clock")
    sdist, wheel = first
    again = _built("wheel", _unpacked(sdist, work / "from sdist"), work / "wheel from sdist", SITUATIONS[0], epoch)
    _equal(wheel, again, "from the sdist")
    return Built(sdist, wheel, work / SITUATIONS[0].folder)


def _build_in(situation: Situation, root: Path, commit: str, epoch: int, work: Path) -> tuple[Path, Path]:
    sources = work / situation.folder
    export(root, commit, sources, situation)
    out = work / f"built in {SITUATIONS.index(situation)}"
    return _built("sdist", sources, out, situation, epoch), _built("wheel", sources, out, situation, epoch)


def export(root: Path, commit: str, where: Path, situation: Situation) -> None:
    """The files of a commit, with modes by the umask and times by the clock of a situation."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit], cwd=root, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(where, filter="data")
        for member in reversed(tar.getmembers()):  # folders after what is in them
            path = where / member.name
            full = 0o777 if member.isdir() or member.mode & 0o100 else 0o666
            path.chmod(full & ~situation.umask)
            os.utime(path, (member.mtime + situation.shift,) * 2)


def _built(kind: str, sources: Path, out: Path, situation: Situation, epoch: int) -> Path:
    out.mkdir(exist_ok=True)
    environment = os.environ | situation.environment | {"SOURCE_DATE_EPOCH": str(epoch)}
    words = [sys.executable, str(_HOOKS), kind, str(out), f"{situation.umask:o}", str(situation.shift)]
    done = subprocess.run(words, cwd=sources, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"the {kind} cannot be built: {(done.stderr or done.stdout).strip()[-2000:]}")
    return out / done.stdout.splitlines()[-1]


def _equal(one: Path, other: Path, where: str) -> None:
    found = list(differences(one, other))
    if found:
        raise BuildError("\n  ".join([f"{one.name} is another one {where}:", *_few(found)]))


def _few(found: list[str], most: int = 20) -> Iterator[str]:
    yield from found[:most]
    if len(found) > most:
        yield f"and {len(found) - most} more"


def _unpacked(sdist: Path, where: Path) -> Path:
    with tarfile.open(sdist) as tar:
        tar.extractall(where, filter="data")
    [inside] = where.iterdir()
    return inside
