"""Packages that only parts of maskloom need: declared as extras, and named where they are missing."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import maskloom as loom
from maskloom.__main__ import main
from maskloom.errors import EXTRAS, MissingPackageError, needed_by

ROOT = Path(__file__).parents[1]
PACKAGE = Path(loom.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
WITHOUT_MATPLOTLIB = "import sys; sys.path.insert(0, 'src'); sys.modules['matplotlib'] = None; from maskloom.__main__ import main; main()"
DRAWN = 'maskloom: a picture needs matplotlib, which is not installed: pip install "maskloom[show]"\n'


def names(requirements):
    return {requirement.split(">")[0] for requirement in requirements}


def test_the_library_needs_torch_and_numpy():
    assert names(PROJECT["dependencies"]) == {"torch", "numpy"}


def test_each_extra_has_the_packages_that_are_named_with_it():
    for package, extra in EXTRAS.items():
        assert package in names(OPTIONAL[extra])
    assert OPTIONAL["all"] == [f"maskloom[{','.join(dict.fromkeys(EXTRAS.values()))}]"]
    assert names(OPTIONAL["show"] + OPTIONAL["cli"] + OPTIONAL["transformers"]) == set(EXTRAS)


def test_the_script_is_the_door_that_names_what_is_missing():
    module, _, function = PROJECT["scripts"]["maskloom"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def imported(path):
    """The packages that a file imports, but for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)


def test_only_the_rooms_that_say_so_import_other_packages():
    homes = {"matplotlib": "show", "typer": "cli.py", "rich": "cli.py", "transformers": "integrations"}
    ours = {"maskloom", "torch", "numpy", "triton", "flash_attn", *sys.stdlib_module_names}
    found = {(path.relative_to(PACKAGE).parts[0], name) for path in PACKAGE.rglob("*.py") for name in imported(path)}
    assert {(room, name) for room, name in found if name not in ours} <= {(room, name) for name, room in homes.items()}
    assert homes.keys() == EXTRAS.keys()


def run(code, *words):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)


def test_without_the_extras_the_rest_runs_and_each_is_named():
    blocked = f"import sys; sys.path[:0] = ['src', '.']; sys.modules.update(dict.fromkeys({list(EXTRAS)}))"
    done = run(f"{blocked}; from tests.outside import smoke; smoke.main('bare')")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["demo"], ["show", "causal", "--out", "build/mask.png"]], ids=" ".join)
def test_the_command_names_what_pictures_need(words, tmp_path):
    done = run(WITHOUT_MATPLOTLIB, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", DRAWN)


def test_a_mask_is_shown_in_the_terminal_without_matplotlib():
    done = run(WITHOUT_MATPLOTLIB, "show", "causal", "--q", "2")
    assert done.returncode == 0, done.stderr


def test_other_missing_modules_are_left_alone():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'nowhere'$") as error, needed_by("a test"):
        importlib.import_module("nowhere")
    assert not isinstance(error.value, MissingPackageError)
