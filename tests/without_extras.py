"""What runs where torch and numpy alone are installed, and what is said of the rest. `.ci/run` gives it to such a Python."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

import maskloom as loom

INSTALL = "which is not installed: pip install "


def refused(call, *args):
    try:
        call(*args)
    except ModuleNotFoundError as error:
        return str(error)
    raise AssertionError(f"{call} ran")


def commanded(*words):
    """Exit status, output and errors of the command, in a Python that lacks what this one lacks."""
    lacking = [name for name, module in sys.modules.items() if module is None]
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); from maskloom.__main__ import main; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(loom.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def main():
    query = torch.randn(2, 3, 5, 7, requires_grad=True)
    loom.attend(query, query, query, loom.causal & loom.lengths([5, 2])).sum().backward()
    assert query.grad.isfinite().all()
    loom.block_mask(loom.window(back=2), 11, 13)
    loom.testing.check_mask(loom.causal, q_len=5, kv_len=7)
    module = loom.MultiheadFlexAttention(7, 6, 3)
    assert module(torch.randn(2, 5, 7), loom.causal).out.shape == (2, 5, 6)

    for draw, *what in (
        (loom.visualize_attention_scores, query, query),
        (loom.show.attention, query, query),
        (loom.show.mask, loom.causal, 5),
        (loom.show.tiles, loom.causal, 5),
        (loom.show.density, loom.causal, 5),
        (loom.show.compare, loom.causal, loom.window(back=2), 5),
    ):
        said = refused(draw, *what)
        assert said == f'a picture needs matplotlib, {INSTALL}"maskloom[show]"', said
    name = "maskloom.integrations.transformers"
    said = refused(importlib.import_module, name)
    assert said == f'{name} needs transformers, {INSTALL}"maskloom[transformers]"', said
    for words in [(), ("demo",), ("--help",)]:
        said = commanded(*words)
        assert said == (2, "", f'maskloom: the command needs typer, {INSTALL}"maskloom[cli]"\n'), said


if __name__ == "__main__":
    main()
    print("torch and numpy are enough; what else is missing is named")
