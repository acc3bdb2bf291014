"""The parts of an explorer page."""

from importlib import resources

SCRIPTS = ("numbers.js", "operations.js", "machine.js", "data.js", "expression.js")
"""The files of the page's script, in the order in which they are joined."""


def script_file(name: str) -> str:
    """The text of one file of the script."""
    return resources.files("maskloom.show.explorer").joinpath("script", name).read_text("utf-8")
