"""A checkpoint is whole or not there, and says which run it is of."""

import errno
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lm import checkpoints
from torch import nn


def made(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    model(torch.randn(7, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_model_optimizer_and_generators_go_on(tmp_path):
    model, optimizer = made(0)
    checkpoints.save(tmp_path, 3, model, optimizer, {"corpus": "abc"})
    step(model, optimizer)
    other, its_optimizer = made(1)
    newest = checkpoints.latest(tmp_path)
    checkpoints.load(newest, other, its_optimizer)
    step(other, its_optimizer)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert checkpoints.read_meta(newest) == {"step": 3, "corpus": "abc"}


def test_a_run_moves_to_a_device_with_a_generator_of_its_own(tmp_path, monkeypatch):
    model, optimizer = made(0)
    checkpoints.save(tmp_path, 3, model, optimizer, {})
    other, its_optimizer = made(1)
    on_cpu = checkpoints._generators
    monkeypatch.setattr(checkpoints, "_generators", lambda: {**on_cpu(), "cuda": torch.zeros(16, dtype=torch.uint8)})
    checkpoints.load(checkpoints.latest(tmp_path), other, its_optimizer)
    assert all(map(torch.equal, other.parameters(), model.parameters()))


def test_a_damaged_checkpoint_is_named(tmp_path):
    model, optimizer = made(0)
    checkpoints.save(tmp_path, 3, model, optimizer, {})
    newest = checkpoints.latest(tmp_path)
    for shard in newest.glob("*.distcp"):
        shard.unlink()
    with pytest.raises(SystemExit, match=r"step-00000003 is damaged, .*: .*__0_0\.distcp"):
        checkpoints.load(newest, model, optimizer)
    with pytest.raises(SystemExit, match=r"step-00000003 is damaged, .*: .*__0_0\.distcp"):
        checkpoints.load_model(newest, model)
    (newest / "meta.json").write_text("{")
    with pytest.raises(
        SystemExit, match=r"step-00000003 is damaged, .*: meta\.json: JSONDecodeError: Expecting property name"
    ):
        checkpoints.read_meta(newest)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "junk": lambda path: path.write_bytes(b"x" * 999),
    "another": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "meta.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_wrong_with_a_file_it_is_named_and_nothing_is_lost(tmp_path, file, damage):
    model, optimizer = made(0)
    for number in (3, 5):
        checkpoints.save(tmp_path, number, model, optimizer, {"corpus": "abc"})
    DAMAGES[damage](tmp_path / "step-00000005" / file)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    words = r"step-00000005 is damaged, and if it is moved away --resume goes on from step-00000003: "
    named = r"\.metadata or a \.distcp file: " if file.endswith("distcp") else re.escape(f"{file}: ")
    readers = {
        "meta.json": (lambda: checkpoints.read_meta(checkpoints.latest(tmp_path)),),
        ".metadata": (lambda: loaded(tmp_path), lambda: generating(tmp_path)),
        "__0_0.distcp": (lambda: loaded(tmp_path),),
    }[file]
    for read in readers:
        with pytest.raises(SystemExit, match=f"{words}{named}\\w+: ."):
            read()
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
    shutil.move(tmp_path / "step-00000005", tmp_path / "away")
    loaded(tmp_path)


def loaded(out):
    checkpoints.load(checkpoints.latest(out), *made(1))


def generating(out):
    checkpoints.load_model(checkpoints.latest(out), made(1)[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", r"ValueError: it holds no entries, but \[1, 2\]"),
        ("{}", "ValueError: its 'step' is None"),
        ('{"step": 3, "model": 5}', "ValueError: its 'model' is 5"),
        ("[" * 100000, "RecursionError"),
    ],
)
def test_entries_that_are_missing_are_named(tmp_path, text, words):
    checkpoints.save(tmp_path, 3, *made(0), {"model": {}})
    (tmp_path / "step-00000003" / "meta.json").write_text(text)
    with pytest.raises(SystemExit, match=rf"moved away training begins anew, .*: meta\.json: {words}"):
        checkpoints.read_meta(checkpoints.latest(tmp_path), model=dict)


def test_what_cannot_be_read_is_not_called_damaged():
    for error in (PermissionError(errno.EACCES, "Permission denied"), torch.OutOfMemoryError("no memory")):
        words = pytest.raises(SystemExit, match=r"^step-00000003 cannot be read: \.metadata: ")
        with words, checkpoints.reading(Path("step-00000003"), ".metadata"):
            raise error


def test_the_newest_two_are_kept(tmp_path):
    model, optimizer = made(0)
    for number in (9, 10, 100):
        checkpoints.save(tmp_path, number, model, optimizer, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert checkpoints.latest(tmp_path) == tmp_path / "step-00000100"
    assert checkpoints.latest(tmp_path / "nowhere") is None


def saves_until_killed(out, model, optimizer, calls):
    """Save step 5, and kill the own process at one of the calls that put something on the disk."""
    left = iter(range(calls))

    def killing(call):
        def called(*args):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return called

    os.fsync, os.rename = killing(os.fsync), killing(os.rename)
    checkpoints.save(out, 5, model, optimizer, {"corpus": "abc"})


def test_what_is_killed_while_it_writes_loses_no_checkpoint(tmp_path):
    model, optimizer = made(0)
    checkpoints.save(tmp_path, 3, model, optimizer, {"corpus": "abc"})
    step(model, optimizer)
    newest, calls = checkpoints.latest(tmp_path), 0
    while newest.name == "step-00000003":
        process = multiprocessing.get_context("fork").Process(
            target=saves_until_killed, args=(tmp_path, model, optimizer, calls)
        )
        process.start()
        process.join(60)
        newest, calls = checkpoints.latest(tmp_path), calls + 1
        other, its_optimizer = made(1)
        checkpoints.load(newest, other, its_optimizer)
        is_new = all(map(torch.equal, other.parameters(), model.parameters()))
        assert is_new == (newest.name == "step-00000005") == (checkpoints.read_meta(newest)["step"] == 5)
        assert process.exitcode == -signal.SIGKILL or is_new
    assert calls >= 4


def test_a_full_disk_is_said_and_leaves_the_last_one(tmp_path, monkeypatch):
    model, optimizer = made(0)
    checkpoints.save(tmp_path, 3, model, optimizer, {})

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = r"checkpoint of step 5 could not be written to .*MiB are free: .*No space left.*the last whole one is .*03$"
    with pytest.raises(SystemExit, match=words):
        checkpoints.save(tmp_path, 5, model, optimizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    ours = {"model": {"d_model": 64, "n_layers": 2}, "corpus": "abc", "processes": 2}
    checkpoints.refuse_other(tmp_path, json.loads(json.dumps(ours)) | {"step": 7}, ours)
    for change, words in {
        "model": ({"d_model": 128, "n_layers": 2}, "of another run: model.d_model is 128 there, and 64 here"),
        "corpus": ("abd", "of another run: corpus is abd there, and abc here"),
        "processes": (4, "of another run: processes is 4 there, and 2 here"),
    }.items():
        with pytest.raises(SystemExit, match=words[1]):
            checkpoints.refuse_other(tmp_path, ours | {change: words[0]}, ours)


def test_a_file_is_no_folder(tmp_path):
    assert checkpoints.latest(tmp_path / "later") is None
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(SystemExit, match=r"--out is a folder .*; .*notes is a file"):
        checkpoints.latest(tmp_path / "notes")
