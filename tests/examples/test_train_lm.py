"""The example that trains: layouts, processes, checkpoints, generation, and what it says when it cannot."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import train_lm
from lm import checkpoints
from lm.corpus import STANDARD_LIBRARY, Bytes, Corpus, Sequences
from lm.metrics import Metrics, Sums
from lm.parallel import Ranks

from examples import plot_curves
from tests.examples.runs import TINY, curve

MODULES = ("bisect.py", "textwrap.py", "heapq.py", "string.py", "shlex.py", "queue.py", "copy.py", "calendar.py")
ROOT = Path(__file__).parents[2]
nightly = pytest.mark.skipif("config.getoption('hypothesis_profile') != 'nightly'", reason="minutes: make nightly")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in MODULES:
        shutil.copy(STANDARD_LIBRARY / name, folder)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Trains with some options; the folder of the run."""
    made = {}

    def trained(*options):
        if options not in made:
            made[options] = tmp_path_factory.mktemp("run")
            train_lm.main(["--out", str(made[options]), "--data", str(data), *TINY, *options])
        return made[options]

    return trained


def weights(out):
    newest = checkpoints.latest(out)
    model = train_lm.Decoder(train_lm.ModelConfig(**checkpoints.read_meta(newest)["model"]))
    checkpoints.load_model(newest, model)
    return model.state_dict()


def assert_same_curve(ours, theirs, within):
    torch.testing.assert_close(
        torch.tensor(curve(ours)), torch.tensor(curve(theirs)), rtol=0, atol=within, equal_nan=True
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--layout", "padded"),
        ("--layout", "sdpa-dense"),
        ("--recompute",),
        ("--workers", "1"),
    ],
    ids=" ".join,
)
def test_the_curve_is_the_same_whatever_the_layout(run, options):
    assert_same_curve(run(*options), run(), within=1e-3)
    assert curve(run())[-1][2] < curve(run())[0][2] - 0.5  # it learns


@nightly
def test_compiled_blocks_follow_the_curve(run):
    assert_same_curve(run("--compile", "eager"), run(), within=1e-3)


@nightly
def test_it_learns_more_than_how_often_each_byte_occurs(tmp_path):
    """A few minutes: the whole standard library, to 0.75 of the entropy of single bytes."""
    words = "--d-model 96 --layers 3 --capacity 512 --steps 200 --lr 4e-3 --validate-every 200 --validation-rows 40"
    train_lm.main(["--out", str(tmp_path), *words.split()])
    corpus = Corpus.read(STANDARD_LIBRARY)
    validation = Sequences.of(corpus.validation, Bytes(), 512, "split").some(40 * 512)
    assert curve(tmp_path)[-1][3] <= 0.75 * validation.unigram_entropy()


def test_curves_of_runs_are_drawn_into_one_picture(run, tmp_path):
    plot_curves.main([str(run()), str(run("--layout", "padded")), "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"is no folder of a run: it has no metrics\.csv"):
        plot_curves.main([str(tmp_path)])


def test_half_precision_follows_the_curve(run):
    assert_same_curve(run("--bf16"), run(), within=0.03)


WAYS = ["ddp", "fsdp", "cp", "cp, fsdp"]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_as_one(run, data, tmp_path):
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "tests.examples.several", str(tmp_path), str(data), *WAYS),
    ]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for way in WAYS:
        assert_same_curve(tmp_path / way, run(), within=1e-3)
        assert checkpoints.read_meta(checkpoints.latest(tmp_path / way))["processes"] == 2
    assert_generates(tmp_path / "fsdp")  # one process writes with what two have trained
    with pytest.raises(SystemExit, match=r"of another run: processes is 2 there, and 1 here"):
        train_lm.main(["--out", str(tmp_path / "ddp"), "--data", str(data), *TINY, "--resume"])


def assert_generates(out):
    given = train_lm.arguments(["--out", str(out), "--generate", "def f(", "x", "--length", "7"])
    assert [text[: len(prompt)] for text, prompt in zip(train_lm.write(given), ("def f(", "x"), strict=True)]


class Interrupt(BaseException):
    """A run that ends in the middle of a step."""


@pytest.mark.parametrize(
    "options",
    [("--report-every", "2"), ("--layout", "padded", "--dropout", "0.2", "--workers", "1")],
    ids=" ".join,
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run, data, tmp_path, monkeypatch, options):
    words = ["--out", str(tmp_path), "--data", str(data), *TINY, *options]
    steps = []

    def interrupted(trainer, lr, step=train_lm.Trainer.step, **more):
        steps.append(lr)
        if len(steps) == 5:
            raise Interrupt
        return step(trainer, lr, **more)

    with monkeypatch.context() as patched:
        patched.setattr(train_lm.Trainer, "step", interrupted)
        with pytest.raises(Interrupt):
            train_lm.main(words)
    assert checkpoints.latest(tmp_path).name == "step-00000003"
    train_lm.main([*words, "--resume"])
    for (name, ours), theirs in zip(weights(tmp_path).items(), weights(run(*options)).values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert str(curve(tmp_path)) == str(curve(run(*options)))


def test_prompts_of_unequal_length_are_continued_as_each_is_alone(run):
    prompts = ["def ", "class Foo(", "x"]

    def written(*some):
        words = ["--out", str(run()), "--generate", *some, "--length", "11", "--temperature", "0.8"]
        return train_lm.write(train_lm.arguments(words))

    assert written(*prompts) == [written(prompt)[0] for prompt in prompts]


def test_byte_pairs_are_trained_and_kept(run, capsys):
    pytest.importorskip("tokenizers")
    out = run("--bpe", "300")
    assert "bytes a token" in capsys.readouterr().out
    assert '"BPE"' in checkpoints.read_meta(checkpoints.latest(out))["tokenizer"]
    assert_generates(out)


def test_what_is_done_is_said(run, capsys):
    run("--over", "drop")
    out = capsys.readouterr().out
    assert re.search(r"69 were longer than 192 tokens \(--over drop\), [1-9][0-9.]+% of tokens are lost", out)
    assert "unigram entropy" in out and "6/6" in out
    assert re.search(r"step 6  loss \S+  validation \S+  [0-9,]+ tokens/s  \S+% of positions wasted", out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "there is no folder /nowhere to read Python files from"),
        (["--capacity", "1"], "the capacity is at least 2 tokens, one to read and one to predict; got 1"),
        (["--rows", "4000"], r"--rows is at most \d+, the sequences to train on; got 4000"),
        (["--cp", "2"], "--cp 2 needs torchrun with a multiple of 2 processes"),
        (["--heads", "3"], "--d-model is a multiple of 2 x --heads, and --heads of --kv-heads; got 16, 3 and"),
        (["--kv-heads", "3"], r"--heads of --kv-heads; got 16, \d+ and 3"),
        (["--dropout", "1.5"], "--dropout is from 0 to below 1; got 1.5"),
        (["--generate", "x", "--out", "/nowhere"], "there is no checkpoint in /nowhere"),
        (
            ["--lr", "1e30"],
            r"step 2: the loss is [0-9.]+ and the norm of its gradient nan\. Checkpoints stay as they were",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_failure_is_clear(data, tmp_path, options, words):
    with pytest.raises(SystemExit, match=words):
        train_lm.main(["--out", str(tmp_path / "run"), "--data", str(data), *TINY, *options])
    assert not list(tmp_path.glob("run/step-*"))


@pytest.mark.parametrize("option", ["--rows", "--cp", "--report-every", "--bpe"])
@pytest.mark.parametrize("word", ["0", "-3", "2.5", "x"])
def test_numbers_that_cannot_be_are_refused(option, word, capsys):
    with pytest.raises(SystemExit):
        train_lm.main(["--out", "unused", f"{option}={word}"])
    assert f"argument {option}: it is a whole number, at least 1; got {word}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--lr", "it is a finite number, above 0; got x"),
        ("--temperature", "it is a finite number, at least 0; got x"),
        ("--compile", "it is a backend of torch.compile"),
    ],
)
def test_words_that_are_no_value_are_refused(option, words, capsys):
    with pytest.raises(SystemExit):
        train_lm.main(["--out", "unused", option, "x"])
    assert f"argument {option}: {words}" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--heads", "3"], ["--dropout", "1.5"]])
def test_a_model_that_cannot_be_is_refused_before_the_corpus_is_read(tmp_path, monkeypatch, options):
    monkeypatch.setattr(train_lm.Corpus, "read", None)
    with pytest.raises(SystemExit, match=options[0]):
        train_lm.main(["--out", str(tmp_path), *TINY, *options])


def test_a_run_that_has_all_its_steps_says_so(run, data, capsys):
    train_lm.main(["--out", str(run()), "--data", str(data), *TINY, "--resume", "--steps", "5"])
    assert "step-00000006 has all of --steps 5: there is nothing left to train" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--seed", "--workers"])
@pytest.mark.parametrize("word", ["-1", "2.5"])
def test_numbers_that_may_be_0(option, word, capsys):
    assert vars(train_lm.arguments(["--out", "unused", option, "0"]))[option[2:]] == 0
    with pytest.raises(SystemExit):
        train_lm.main(["--out", "unused", f"{option}={word}"])
    assert f"argument {option}: it is a whole number, at least 0; got {word}" in capsys.readouterr().err


def test_the_functions_that_gave_nan_are_named(data, tmp_path, monkeypatch):
    def poisoned(trainer, inputs, loss=train_lm.Trainer.loss):
        return loss(trainer, inputs) * (torch.nan if "textwrap.py" in " ".join(inputs.places) else 1)

    monkeypatch.setattr(train_lm.Trainer, "loss", poisoned)
    words = r"step \d: the loss is nan and the norm of its gradient nan, first in a batch of .*\btextwrap\.py:\d+"
    with pytest.raises(SystemExit, match=words):
        train_lm.main(["--out", str(tmp_path), "--data", str(data), *TINY, "--save-every", "41"])
    assert checkpoints.latest(tmp_path) is None


def test_a_step_without_a_target_changes_nothing_that_is_counted(tmp_path):
    """A sequence that is split may leave a rest of one token, which nothing predicts."""
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / f"{name}.py").write_text(f"def f{name}(): pass\n" * 3)
    words = [*TINY, "--capacity", "4", "--rows", "1", "--steps", "9", "--layout", "padded", "--validate-every", "9"]
    train_lm.main(["--out", str(tmp_path / "run"), "--data", str(tmp_path / "data"), *words])
    found = curve(tmp_path / "run")
    assert [row[0] for row in found] == list(range(1, 10)) and math.isfinite(found[-1][3])
    assert 0 < sum(math.isnan(row[2]) for row in found) < 9


def test_a_validation_without_a_target_has_no_loss(tmp_path, data, monkeypatch):
    given = train_lm.arguments(["--out", str(tmp_path), "--data", str(data), *TINY])
    trainer = train_lm.Trainer(given, Ranks(0, 1, torch.device("cpu"), None))
    monkeypatch.setattr(trainer, "validation", replace(trainer.validation, tokens=[torch.tensor([256])], places=["a"]))
    assert trainer.validate() is None
    metrics = Metrics(tmp_path / "metrics.csv", {"layout": "packed", "corpus": "a"}, 9, 0, quiet=False)
    metrics.step(Sums(0, 0, 1, 7))
    metrics.report(1, None)
    assert [str(number) for number in curve(tmp_path)[0]] == ["1.0", "1.0", "nan", "nan"]


@pytest.mark.parametrize("text", ["step\n1\n", "a,b\n1,2\n", "\0", b"\xff\xfe"])
def test_damaged_metrics_are_named_and_kept(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"metrics\.csv is damaged: .*Moved away, it is begun anew with the next row"):
        Metrics(path, {}, 9, 5, quiet=False)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sampler": None}, "ValueError: its 'sampler' is None"),
        ({"sampler": {"epoch": "x"}}, "."),
    ],
)
def test_a_damaged_state_of_the_sampler_is_named(run, data, tmp_path, changed, words):
    shutil.copytree(run(), tmp_path / "run")
    file = checkpoints.latest(tmp_path / "run") / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(SystemExit, match=f"step-00000006 is .*{words}"):
        train_lm.main(["--out", str(tmp_path / "run"), "--data", str(data), *TINY, "--resume"])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model", {"width": 3}, "TypeError: .*unexpected keyword argument 'width'"),
        ("model", None, "ValueError: its 'model' is None"),
        ("tokenizer", 5, "ValueError: its 'tokenizer' is 5"),
    ],
)
def test_a_checkpoint_with_a_damaged_model_is_named(run, tmp_path, name, value, words):
    shutil.copytree(run(), tmp_path / "run")
    file = checkpoints.latest(tmp_path / "run") / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(SystemExit, match=rf"step-00000006 is damaged, .*: meta\.json: {words}"):
        train_lm.main(["--out", str(tmp_path / "run"), "--generate", "x"])


def test_a_full_disk_is_said(data, tmp_path, monkeypatch):
    def full(metrics):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(metrics.path))

    monkeypatch.setattr(Metrics, "_write", full)
    with pytest.raises(SystemExit, match=r"train_lm: \[Errno 28\] No space left on device: .*metrics\.csv"):
        train_lm.main(["--out", str(tmp_path), "--data", str(data), *TINY])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], r"step-00000006 is there: --resume goes on from it, and another --out begins anew"),
        (["--resume", "--d-model", "32"], r"step-00000006 is of another run: model.d_model is 16 there, and 32 here"),
        (["--resume", "--seed", "1"], r"of another run: the state has seed=0, and this sampler seed=1"),
        (["--resume", "--layout", "padded"], r"of another run: layout is packed there, and padded here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_checkpoint_of_another_run_is_an_error(run, data, options, words):
    with pytest.raises(SystemExit, match=words):
        train_lm.main(["--out", str(run()), "--data", str(data), *TINY, *options])


def test_another_corpus_is_an_error(run, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "more.py").write_text("def f(): pass\n")
    with pytest.raises(SystemExit, match=r"of another run: corpus is [0-9a-f]{16} there, and [0-9a-f]{16} here"):
        train_lm.main(["--out", str(run()), "--data", str(tmp_path / "data"), *TINY, "--resume"])


def test_the_script_is_short():
    assert len((ROOT / "examples" / "train_lm.py").read_text().splitlines()) < 300
