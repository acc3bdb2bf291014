"""The public surface, what importing costs, and which way imports run."""

import ast
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
        assert value.__doc__, name


def fresh(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_importing_is_light():
    code = (
        "import gc, time, torch, sys; gc.disable(); start = time.process_time(); import maskloom; "
        "print((time.process_time() - start) * 1e3); "
        "print([name for name in ('matplotlib', 'transformers', 'typer', 'rich', 'torch._dynamo', 'torch._inductor')"
        " if name in sys.modules])"
    )
    runs = [fresh(code).splitlines() for _ in range(3)]
    # without Python's look through all that torch has allocated, 60 ms whenever the next thousand objects are full
    assert min(float(run[0]) for run in runs) < 50  # milliseconds of this process's own time
    assert runs[0][1] == "[]"


def test_block_masks_are_built_without_torchs_compiler():
    # loading it takes a second, all of what the first call would take
    code = (
        "import torch, sys, maskloom as loom; "
        "loom.block_mask(loom.causal & loom.lengths([5, 300]), 300, 300, device='cpu'); "
        "loom.explain_block_mask(loom.documents(torch.arange(300) // 7) | loom.sinks(2), 300, 300, device='cpu'); "
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    assert fresh(code) == "[]\n"
