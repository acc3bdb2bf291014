"""Calls hatchling as a build frontend does, under a umask and a clock of its own: hooks.py KIND OUT UMASK SHIFT."""

import os
import sys
import time


def main(kind: str, out: str, umask: str, shift: str) -> None:
    """Build in the current folder; print the name of the file."""
    os.umask(int(umask, 8))
    real = time.time
    vars(time)["time"] = lambda: real() + int(shift)
    from hatchling import build

    print(build.build_sdist(out) if kind == "sdist" else build.build_wheel(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
