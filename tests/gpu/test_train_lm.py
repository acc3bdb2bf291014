"""The example that trains, on a GPU: layouts, half precision, compiled blocks, checkpoints, one process of torchrun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import train_lm
from lm.corpus import STANDARD_LIBRARY

from tests.examples.runs import curve

ROOT = Path(__file__).parents[2]
SMALL = (
    "--d-model 128 --layers 2 --heads 2 --kv-heads 1 --capacity 1024 --rows 2 --validation-rows 2 --steps 8 "
    "--report-every 1 --validate-every 4 --save-every 4 --lr 1e-3"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for path in sorted(STANDARD_LIBRARY.glob("*.py"))[:60]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    made = {}

    def trained(options):
        if options not in made:
            made[options] = tmp_path_factory.mktemp("run")
            train_lm.main(["--out", str(made[options]), "--data", str(data), *SMALL.split(), *options.split()])
        return made[options]

    return trained


def differ(ours, theirs):
    """The largest difference of two curves, in nats."""
    pairs = zip(curve(ours), curve(theirs), strict=True)
    return max(abs(one - other) for rows in pairs for one, other in zip(*rows, strict=True) if one == one)


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ("--layout padded", 2e-3),
        ("--layout sdpa-dense", 2e-3),
        ("--bf16", 0.03),
        ("--bf16 --layout padded --recompute", 0.03),
        ("--bf16 --compile --workers 1", 0.03),
        ("--bf16 --compile --layout padded", 0.03),
        ("--bf16 --compile --layout sdpa-dense", 0.03),
    ],
)
def test_the_curve_is_the_same(run, options, within):
    assert differ(run(options), run("")) < within


def test_it_resumes_and_writes(run, data, tmp_path):
    words = ["--out", str(tmp_path), "--data", str(data), *SMALL.split(), "--bf16"]
    train_lm.main([*words, "--steps", "4"])
    train_lm.main([*words, "--resume"])
    assert [row[0] for row in curve(tmp_path)] == list(range(1, 9))
    prompts = ["def ", "class Foo(", "x"]
    texts = train_lm.write(train_lm.arguments(["--out", str(tmp_path), "--generate", *prompts, "--length", "7"]))
    assert [text[: len(prompt)] for text, prompt in zip(texts, prompts, strict=True)] == prompts


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_process_of_torchrun_trains_as_one_without(run, data, tmp_path, parallel):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
        *("examples/train_lm.py", "--out", str(tmp_path), "--data", str(data), *SMALL.split(), "--parallel", parallel),
    ]
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert differ(tmp_path, run("")) < 2e-3
