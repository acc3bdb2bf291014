"""The command: ``python -m tools.release``, or ``make release``. It uploads nothing."""

import argparse
import datetime
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.release import cells, typed
from tools.release.build import BuildError, build
from tools.release.cells import Outcome
from tools.release.state import RefusedError, Release, release_of

ROOT = Path(__file__).parents[2]


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Check, build, compare, install, and at the end put sdist and wheel into dist/. The exit status: 2 is refused."""
    given = _parser().parse_args(words)
    try:
        wanted = cells.asked(given.only)
        release = release_of(root, datetime.datetime.now(datetime.UTC).date())
        _check(release, given.rehearse)
    except (RefusedError, ValueError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="maskloom-release-") as folder:
        return _make(release, wanted, root, Path(folder), given.rehearse, given.rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument(
        "--rehearse", action="store_true", help="say what forbids the release, go on, and leave dist/ alone"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PYTHON:TORCH",
        help="a cell to run, such as 3.12:newest; the others are not run",
    )
    parser.add_argument(
        "--rows",
        type=Path,
        help="where to write what became of each cell: tools/release/installs.csv is shown in the docs",
    )
    return parser


def _check(release: Release, rehearse: bool) -> None:
    if release.problems and not rehearse:
        raise RefusedError(
            f"{release.version} cannot be released\n" + "\n".join(f"  {line}" for line in release.problems)
        )
    _say(f"maskloom {release.version} of commit {release.commit[:12]}, dated {release.date}")
    for line in release.problems:
        _say(f"  would be refused: {line}")


def _make(
    release: Release, wanted: Sequence[cells.Cell], root: Path, work: Path, rehearse: bool, rows: Path | None
) -> int:
    _say("building")
    try:
        sdist, wheel, sources = build(root, release.commit, release.epoch, work)
    except BuildError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    _say("  sdist and wheel are equal from other folders, umasks and clocks; the wheel of the sdist is equal too")
    _say("types, from outside")
    outcomes = [_told(name, outcome) for name, outcome in typed.checked(wheel, sources, work / "types").items()]
    _say("installing, and the smoke test")
    installed = {cell: _told(str(cell), _outcome(cell, wanted, wheel, sources)) for cell in cells.CELLS}
    if rows is not None:
        cells.write(installed, rows)
    outcomes += installed.values()
    failed = sum(outcome.verdict == "failed" for outcome in outcomes)
    if failed or all(outcome.verdict == "not run" for outcome in installed.values()):
        why = f"{failed} failed" if failed else "it was installed nowhere"
        print(f"release: {why}, so nothing was written", file=sys.stderr)
        return 1
    _finish(release, [sdist, wheel], root / "dist", rehearse)
    return 0


def _outcome(cell: cells.Cell, wanted: Sequence[cells.Cell], wheel: Path, sources: Path) -> Outcome:
    return cells.run(cell, wheel, sources) if cell in wanted else Outcome("not run", "not asked for")


def _told(name: str, outcome: Outcome) -> Outcome:
    _say(f"  {name}: {outcome}")
    return outcome


def _finish(release: Release, files: Sequence[Path], dist: Path, rehearse: bool) -> None:
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]
    _say("\n".join(sums))
    if rehearse:
        return _say("this was a rehearsal: dist/ is as it was")
    for path in files:
        _put(path, dist)
    _say(f"they are in {dist}. Left to do, by a person:")
    _say(
        f"  git tag -a {release.tag} -m 'maskloom {release.version}' {release.commit} && git push origin {release.tag}"
    )
    return _say(f"  upload {' and '.join(path.name for path in files)}, once the name is ours")


def _put(path: Path, dist: Path) -> None:
    """Copy a file into dist/, whole or not at all."""
    dist.mkdir(exist_ok=True)
    part = dist / f".{path.name}.part"
    shutil.copyfile(path, part)
    os.replace(part, dist / path.name)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
