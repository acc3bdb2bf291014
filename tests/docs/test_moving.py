"""The page about 0.1 names every name that moved, and errors say the same."""

import operator
import re

import pytest

import maskloom as loom
from docs import make_masks

PAGE = (make_masks.HERE / "moving_from_0_1.md").read_text()
TABLES = PAGE.split("| now in | names |")[1].split("## Pictures")[0]
MOVED = [
    (name, f"{space}.{name}")
    for space, names in re.findall(r"^\| `loom\.(\w+)` \| (`\w+`(?:, `\w+`)*) \|$", TABLES, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", names)
]
RENAMED = re.findall(r"^\| `loom\.(\w+)` \| `loom\.([\w.]+)` \|$", TABLES, re.MULTILINE)
NAMES_OF_0_1 = 103


@pytest.mark.parametrize(("old", "new"), MOVED + RENAMED)
def test_an_error_says_where_an_old_name_is_now(old, new):
    assert operator.attrgetter(new)(loom) is not None
    with pytest.raises(AttributeError, match=rf"no attribute '{old}'; it is maskloom\.{re.escape(new)}$"):
        getattr(loom, old)


def test_all_names_of_0_1_are_there():
    stay = re.findall(r"`(\w+)`", PAGE.split("At the top stay")[1].split("The other names stand")[0])
    errors = ["FallbackError", "ParseError"]
    assert all(hasattr(loom, name) for name in stay + errors)
    assert len({*stay, *errors, *dict(MOVED), *dict(RENAMED)}) == NAMES_OF_0_1
    assert dict(RENAMED) == loom._RENAMED
