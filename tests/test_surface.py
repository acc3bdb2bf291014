"""The public surface, what importing costs, and which way imports run."""

import ast
import json
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskloom as loom

PACKAGE = Path(loom.__file__).parent
FLOORS = [
    "errors",
    "core",
    "program",
    "batches",
    "masks",
    "blocks",
    "scores",
    "attention",
    "loading",
    "nn",
    "distributed",
]
"""From the bottom of the house to its top: each imports from its own floor and from those below it."""
EDGE = {"show", "demo", "cli", "testing", "integrations", "__main__"}
NAMESPACES = ("masks", "blocks", "scores", "batches", "nn", "distributed", "show", "testing")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def modules_of(path: Path, *, at_once: bool = False) -> set[str]:
    """The modules of maskloom that a file imports, anywhere in it, or at once when it is loaded."""
    found = set()
    tree = ast.parse(path.read_text())
    if path.name == "__init__.py":  # a namespace may show names of higher floors, which it loads at their first use
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and _is_for_types(node))]
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "maskloom":
            found |= {inner if is_module(inner := f"{node.module}.{a.name}") else node.module for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "maskloom"}
    return found


def _is_for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(path: Path) -> set[str]:
    return {room(name) for name in modules_of(path) - {"maskloom"}}


FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_arrows_run_one_way(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here not in EDGE:
        allowed = set(FLOORS[: FLOORS.index(here) + 1])
        assert imports_of(path) <= allowed, f"{here} may import {sorted(allowed)}"


def test_the_arrow_test_sees_a_wrong_arrow(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from maskloom.nn.multihead import MultiheadFlexAttention\nimport maskloom.show.plot\n")
    assert imports_of(wrong) == {"nn", "show"}
    wrong.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import maskloom.show.plot\n")
    assert imports_of(wrong) == {"show"}  # only a namespace may name for types what stands above it


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_a_way_from_the_top_of_the_house_to_its_bottom_is_short():
    """The longest chain of modules that load one another."""
    paths = {module_of(path): path for path in (*FILES, PACKAGE / "__init__.py")}
    after = {name: modules_of(path, at_once=True) & paths.keys() - {name} for name, path in paths.items()}
    lengths: dict[str, int] = {}

    def length(name: str, below: tuple[str, ...] = ()) -> int:
        assert name not in below, f"a circle: {' -> '.join((*below, name))}"
        if name not in lengths:
            lengths[name] = 1 + max((length(to, (*below, name)) for to in after[name]), default=0)
        return lengths[name]

    assert max(map(length, paths)) <= 14, {name: count for name, count in lengths.items() if count > 14}


def test_no_folder_is_a_heap():
    heaps = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES}}
    assert {str(folder): count for folder, count in heaps.items() if count > 16} == {}


def test_every_name_exists_and_says_what_it_is():
    assert len(set(loom.__all__)) == len(loom.__all__)
    spaces = [getattr(loom, name) for name in NAMESPACES]
    for space in (loom, *spaces):
        assert len(set(space.__all__)) == len(space.__all__), space
        for name in space.__all__:
            value = getattr(space, name)
            made_up = f"{getattr(value, '__name__', '')}("  # what dataclass writes where a class says nothing
            assert value.__doc__ and not value.__doc__.startswith(made_up), name


def test_the_top_level_is_short():
    assert tuple(loom.__all__[-len(NAMESPACES) :]) == NAMESPACES
    assert len(loom.__all__) - len(NAMESPACES) <= 28
    with pytest.raises(AttributeError, match=r"it is maskloom\.masks\.chunked"):
        _ = loom.chunked
    for name, now in loom._RENAMED.items():
        assert operator.attrgetter(now)(loom)
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'; it is maskloom\.{re.escape(now)}$"):
            getattr(loom, name)
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        _ = loom.nonsense


def test_no_name_is_in_two_namespaces():
    named = [
        space for space in NAMESPACES if space != "show"
    ]  # a picture bears the name of what it draws: show.density
    places = [(name, space) for space in named for name in getattr(loom, space).__all__]
    names = [name for name, _ in places]
    assert sorted(place for place in places if names.count(place[0]) > 1) == []


def fresh(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


_IMPORTING = """
import json, sys, threading
import torch
import torch.nn.attention.flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

operations, opened, wanted = [], [], False

class Count(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        operations.append(str(function))
        return function(*args, **(kwargs or {}))

def hear(event, arguments):
    if wanted and event in ("open", "subprocess.Popen", "os.fork", "_thread.start_new_thread", "socket.connect"):
        opened.append((event, str(arguments[0]) if arguments else ""))

sys.addaudithook(hear)
before, wanted = set(sys.modules), True
with Count():
    import maskloom
wanted = False
print(json.dumps({"modules": sorted(set(sys.modules) - before), "operations": operations, "opened": opened}))
"""
"""What one import does, beside torch: modules loaded, tensors computed, files opened, threads and processes begun."""


def test_importing_does_nothing_but_read_its_own_modules():
    fresh("import maskloom")  # writes bytecode where there is none
    done = json.loads(fresh(_IMPORTING))
    assert [name for name in done["modules"] if name.split(".")[0] != "maskloom"] == []
    assert done["operations"] == []
    assert {event for event, _ in done["opened"]} == {"open"}
    read = [
        Path(path) for _, path in done["opened"] if not path.isdigit()
    ]  # the number of a file: bytecode that is written
    assert [path for path in read if not (path.is_relative_to(PACKAGE) and ".py" in path.name)] == []


def test_importing_reads_each_file_once():
    done = json.loads(fresh(_IMPORTING))  # the second time, where bytecode lies: a file for each module
    read = [path.split(".cpython")[0] for _, path in done["opened"] if path.endswith(".pyc")]
    assert len(set(read)) == len(read) <= len(done["modules"])


def test_no_room_of_the_edge_is_loaded():
    modules = {room(name) for name in json.loads(fresh(_IMPORTING))["modules"] if name != "maskloom"}
    assert modules & {*EDGE, "nn"} == set()
    names = "[name for name in ('matplotlib', 'transformers', 'typer', 'rich', 'torch._dynamo', 'torch._inductor')"
    assert fresh(f"import sys, maskloom; print({names} if name in sys.modules])") == "[]\n"


def test_block_masks_are_built_without_torchs_compiler():
    # loading it takes a second, all of what the first call would take
    code = (
        "import torch, sys, maskloom as loom; "
        "loom.block_mask(loom.causal & loom.lengths([5, 300]), 300, 300, device='cpu'); "
        "loom.blocks.explain_block_mask(loom.documents(torch.arange(300) // 7) | loom.sinks(2), 300, 300, device='cpu'); "
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    assert fresh(code) == "[]\n"


def changes_in_place(node: ast.AST) -> bool:
    """Whether it is a call of a method that changes its tensor, ``x.add_(1)``, or of a function that writes into ``out``."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    return (name.endswith("_") and not name.endswith("__")) or any(keyword.arg == "out" for keyword in node.keywords)


def forwards_that_change_in_place(tree: ast.AST) -> list[str]:
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = [
        each for each in classes if any(ast.unparse(base).endswith("autograd.Function") for base in each.bases)
    ]
    forwards = [
        (each.name, method)
        for each in functions
        for method in each.body
        if isinstance(method, ast.FunctionDef) and method.name == "forward"
    ]
    return [name for name, method in forwards if any(map(changes_in_place, ast.walk(method)))]


def test_no_forward_changes_a_tensor_in_place():
    """dynamo of torch 2.11 then gives a gradient of 0. In the room `distributed` a graph ends before such a function."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "distributed"]
    found = {path.name: forwards_that_change_in_place(ast.parse(path.read_text())) for path in paths}
    assert {name: classes for name, classes in found.items() if classes} == {}


@pytest.mark.parametrize("line", ["x.index_fill_(0, places, 0)", "torch.add(x, 1, out=x)", "return x.exp().add_(1)"])
def test_the_test_of_forwards_sees_one(line):
    source = f"class F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        {line}\n"
    assert forwards_that_change_in_place(ast.parse(source)) == ["F"]
    assert forwards_that_change_in_place(ast.parse(source.replace("forward", "backward"))) == []
