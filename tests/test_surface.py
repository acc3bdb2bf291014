"""The public surface, what importing costs, and which way imports run."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import maskloom as loom

PACKAGE = Path(loom.__file__).parent
LAYERS = ["masks", "blocks", "scores", "attention", "nn"]  # each may import those before it
NARROW = {"batches": {"masks"}, "scores": {"masks"}}  # these import no more than this
EDGE = {"show", "demo", "cli", "testing", "integrations", "__main__"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "maskloom":
            names = [node.module] if node.module != "maskloom" else [f"maskloom.{alias.name}" for alias in node.names]
            found |= {room(name) for name in names}
        elif isinstance(node, ast.Import):
            found |= {room(alias.name) for alias in node.names if alias.name.split(".")[0] == "maskloom"}
    return found


FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_arrows_run_one_way(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here in EDGE:
        return
    if here in NARROW:
        allowed = NARROW[here] | {here, "errors"}
    elif here in LAYERS:
        allowed = set(LAYERS[: LAYERS.index(here) + 1]) | {"errors"}
    else:
        allowed = {"errors"}
    assert imports_of(path) <= allowed, f"{here} may import {sorted(allowed)}"


def test_the_arrow_test_sees_a_wrong_arrow(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from maskloom.nn.multihead import MultiheadFlexAttention\nimport maskloom.show.plot\n")
    assert imports_of(wrong) == {"nn", "show"}


def test_every_name_exists_and_says_what_it_is():
    assert len(set(loom.__all__)) == len(loom.__all__)
    for name in loom.__all__:
        value = getattr(loom, name)
        made_up = f"{getattr(value, '__name__', '')}("  # what dataclass writes where a class says nothing
        assert value.__doc__ and not value.__doc__.startswith(made_up), name


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
    assert modules & EDGE <= {"show"}  # its names are public; matplotlib waits for the first picture
    names = "[name for name in ('matplotlib', 'transformers', 'typer', 'rich', 'torch._dynamo', 'torch._inductor')"
    assert fresh(f"import sys, maskloom; print({names} if name in sys.modules])") == "[]\n"


def test_block_masks_are_built_without_torchs_compiler():
    # loading it takes a second, all of what the first call would take
    code = (
        "import torch, sys, maskloom as loom; "
        "loom.block_mask(loom.causal & loom.lengths([5, 300]), 300, 300, device='cpu'); "
        "loom.explain_block_mask(loom.documents(torch.arange(300) // 7) | loom.sinks(2), 300, 300, device='cpu'); "
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    assert fresh(code) == "[]\n"
