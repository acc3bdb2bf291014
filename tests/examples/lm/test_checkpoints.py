"""A checkpoint is whole or not there, and says which run it is of."""

import errno
import json
import multiprocessing
import os
import signal

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
    with pytest.raises(SystemExit, match=r"step-00000003 is damaged, .*: meta\.json: Expecting property name"):
        checkpoints.read_meta(newest)


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
