"""The command ``maskloom``, which is ``python -m maskloom`` too."""

import sys

from maskloom.errors import MissingPackageError, needed_by


def main() -> None:
    """Run the command; a package that it needs and that is not installed is one line, and exit status 2."""
    try:
        with needed_by("the command"):
            from maskloom.cli import app
        app()
    except MissingPackageError as error:
        print(f"maskloom: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
