"""The smoke test of an installed maskloom: what runs, and what is said of what is missing.

    python smoke.py bare     where torch and numpy alone are installed
    python smoke.py full     where the extras [cli] and [show] are too

`python -m tools.release` gives it to every Python and torch that it has, and CI to one.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

import maskloom as loom

INSTALL = "which is not installed: pip install "


def main(what: str) -> None:
    """Run what a Python with these packages can run; an error is a failure."""
    attention()
    page()
    {"bare": without_extras, "full": with_extras}[what]()
    print(f"maskloom {metadata.version('maskloom')}, Python {sys.version.split()[0]}, torch {torch.__version__}")


def attention() -> None:
    query = torch.randn(2, 3, 5, 7, requires_grad=True)
    mask = loom.causal & loom.lengths([5, 2])
    loom.attend(query, query, query, mask).sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()
    out, _ = loom.reference(query, query, query, mask)
    torch.testing.assert_close(loom.attend(query, query, query, mask), out)
    loom.block_mask(loom.window(back=2), 11, 13)
    loom.testing.check_mask(loom.causal, q_len=5, kv_len=7)
    module = loom.MultiheadFlexAttention(7, 6, 3)
    assert module(torch.randn(2, 5, 7), loom.causal).out.shape == (2, 5, 6)
    assert (Path(loom.__file__).parent / "py.typed").exists()


def page() -> None:
    """A page to explore needs no extra, and its script lies in the wheel."""
    tokens = ["</script><script>alert(1)", *"bcde"]
    found = loom.show.page(loom.causal & loom.lengths([5, 2]), 5, scores=torch.rand(5, 5), tokens=tokens).html
    assert "Content-Security-Policy" in found and "<script>alert" not in found
    assert found.startswith("<!doctype html>") and "class Explorer" in found and ".explorer {" in found


def without_extras() -> None:
    """What needs an extra says which, with the line that installs it."""
    for name, draw in drawings().items():
        said = refused(draw)
        assert said == f'a picture needs matplotlib, {INSTALL}"maskloom[show]"', (name, said)
    name = "maskloom.integrations.transformers"
    said = refused(lambda: importlib.import_module(name))
    assert said == f'{name} needs transformers, {INSTALL}"maskloom[transformers]"', said
    for words in ([], ["demo"], ["show", "causal"], ["--help"]):
        done = commanded(*words)
        assert done == (2, "", f'maskloom: the command needs typer, {INSTALL}"maskloom[cli]"\n'), (words, done)


def with_extras() -> None:
    """The pictures, and the command."""
    for draw in drawings().values():
        draw()
    with tempfile.TemporaryDirectory() as folder:
        status, _, errors = commanded("demo", "--out", folder)
        assert status == 0, errors
        for name in ("attention.png", "tiles.png"):
            assert Path(folder, name).read_bytes().startswith(b"\x89PNG"), name
        status, _, errors = commanded("show", "causal", "--q", "5", "--html", f"{folder}/mask.html")
        assert status == 0 and Path(folder, "mask.html").stat().st_size > 10_000, errors
    shown = commanded("show", "causal & window(back=1)", "--q", "3")
    assert shown[:2] == (0, "x · ·\nx x ·\n· x x\n"), shown
    assert commanded("nonsense")[0] == 2


def drawings() -> dict[str, Callable[[], object]]:
    """Every function that draws with matplotlib."""
    query = torch.randn(2, 3, 5, 7)
    return {
        "visualize_attention_scores": lambda: visualized(query),
        "attention": lambda: loom.show.attention(query, query),
        "mask": lambda: loom.show.mask(loom.causal, 5),
        "tiles": lambda: loom.show.tiles(loom.causal, 5),
        "density": lambda: loom.show.density(loom.causal, 5),
        "compare": lambda: loom.show.compare(loom.causal, loom.window(back=2), 5),
    }


def visualized(query: torch.Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loom.visualize_attention_scores(query, query, path=Path(folder, "scores.png"))


def refused(call: Callable[[], object]) -> str:
    """What is said where a package is missing."""
    try:
        call()
    except ModuleNotFoundError as error:
        return str(error)
    raise AssertionError("nothing was missing")


def commanded(*words: str) -> tuple[int, str, str]:
    """Exit status, output and errors of the command, in a Python that lacks what this one lacks."""
    lacking = [name for name, module in sys.modules.items() if module is None]
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); from maskloom.__main__ import main; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(loom.__file__).parents[1]), "COLUMNS": "80", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


if __name__ == "__main__":
    main(sys.argv[1])
