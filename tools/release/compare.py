"""What differs between two archives, wheels or sdists, in words."""

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Member(NamedTuple):
    """A file of an archive."""

    content: bytes
    mode: int
    time: object
    owner: object


def differences(one: Path, other: Path) -> Iterator[str]:
    """A line for each difference; none if the bytes are equal."""
    if one.name != other.name:
        yield f"its name is {other.name}"
    if one.read_bytes() == other.read_bytes():
        return
    ours, theirs = members(one), members(other)
    yield from (f"{name} is missing" for name in ours if name not in theirs)
    yield from (f"{name} is there too" for name in theirs if name not in ours)
    both = [name for name in ours if name in theirs]
    found = [line for name in both for line in _of_member(name, ours[name], theirs[name])]
    yield from found
    if list(ours) != list(theirs) and ours.keys() == theirs.keys():
        yield "its files are in another order"
    elif not found and ours.keys() == theirs.keys():
        yield "its files are equal, and its bytes are not: compression or headers differ"


def _of_member(name: str, one: Member, other: Member) -> Iterator[str]:
    if one.content != other.content:
        yield f"{name} has other content: {len(one.content)} and {len(other.content)} bytes"
    if one.mode != other.mode:
        yield f"{name} has mode {one.mode:o} and {other.mode:o}"
    if one.time != other.time:
        yield f"{name} is of {one.time} and {other.time}"
    if one.owner != other.owner:
        yield f"{name} belongs to {one.owner} and {other.owner}"


def members(path: Path) -> dict[str, Member]:
    """The files of an archive by name, in its order."""
    return _of_wheel(path) if path.suffix == ".whl" else _of_sdist(path)


def _of_wheel(path: Path) -> dict[str, Member]:
    with zipfile.ZipFile(path) as archive:
        return {
            info.filename: Member(archive.read(info), info.external_attr >> 16, info.date_time, info.create_system)
            for info in archive.infolist()
        }


def _of_sdist(path: Path) -> dict[str, Member]:
    with tarfile.open(path) as archive:
        return {info.name: _of_tar(archive, info) for info in archive.getmembers()}


def _of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    file = archive.extractfile(info)
    owner = (info.uid, info.gid, info.uname, info.gname)
    return Member(b"" if file is None else file.read(), info.mode, info.mtime, owner)
