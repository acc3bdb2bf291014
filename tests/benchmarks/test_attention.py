"""What the attention benchmarks check against and divide by; and that they run."""

import csv
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import maskloom as loom
from benchmarks import clocks
from benchmarks.attention_cases import flops, make_batch, truth, visible_pairs, worst_error
from benchmarks.clocks import balanced, median_host_ms, median_ms, once_device_ms

ROOT = Path(__file__).parent.parent.parent
OURS = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
"""The environment of a script that measures this source, whatever is installed."""


@pytest.fixture
def batch():
    return make_batch(3, 2, 1031, 5, real=0.75, device="cpu", dtype=torch.float32)  # two bands of queries


def test_the_share_that_is_real(batch):
    assert batch.lens.tolist() == [516, 773, 1031]
    assert batch.real(batch.query).shape == (516 + 773 + 1031, 2, 5)
    assert not batch.grad[0, :, 516:].any() and batch.grad[0, :, 515].any()


def test_pairs_are_counted_in_every_row(batch):
    lens = batch.lens.tolist()
    assert visible_pairs(loom.causal & loom.lengths(batch.lens), batch) == sum(n * (n + 1) // 2 for n in lens)
    assert visible_pairs(loom.causal, batch) == 3 * 1031 * 1032 // 2
    assert visible_pairs(loom.window(back=1) & loom.lengths(batch.lens), batch) == sum(2 * n - 1 for n in lens)


def test_flops_are_two_products_forward_and_five_backward():
    assert flops(pairs=7, heads=3, head_dim=5) == (2 * 2 * 7 * 3 * 5, 5 * 2 * 7 * 3 * 5)


@pytest.mark.parametrize("count", range(8))
def test_in_balanced_orders_each_comes_behind_each_other_equally_often(count):
    orders = balanced(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    behind = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(behind) == count * (count - 1) and len(set(behind.values())) <= 1


def test_truth_is_the_reference_in_one_piece(batch):
    mask = loom.causal & loom.lengths(batch.lens)
    leaves = [tensor.double().requires_grad_() for tensor in batch.inputs]
    out, _ = loom.reference(*leaves, mask)
    out.backward(batch.grad.double())
    whole = [batch.real(tensor) for tensor in (out.detach(), *(leaf.grad for leaf in leaves))]
    assert worst_error(truth(mask, batch), whole) < 1e-6


def test_an_error_that_is_not_a_number_is_infinite():
    assert worst_error([torch.tensor([float("nan")])], [torch.ones(1)]) == float("inf")


@pytest.fixture
def measured(tmp_path):
    """Run the benchmark on few positions: what it prints, and its rows."""

    def run(*options):
        out = tmp_path / "rows.csv"
        command = [sys.executable, "benchmarks/attention_gpu.py", "--tiny", "--device", "cpu", "--repeats", "1"]
        done = subprocess.run(
            [*command, *options, "--out", str(out)], cwd=ROOT, check=True, capture_output=True, env=OURS
        )
        rows = list(csv.DictReader(out.read_text().splitlines())) if out.exists() else []
        return done.stdout.decode(), rows

    return run


def test_the_benchmark_runs(measured):
    _, rows = measured("--sections", "short", "simplify", "table")
    right = [row for row in rows if row["error"]]
    ran = {(row["section"], row["mask"], row["contender"]) for row in right}
    assert {("short", "causal & lengths", "sdpa, dense mask"), ("short", "causal & lengths", "attend, auto")} <= ran
    assert {("simplify", "causal & window", f"attend, {way}") for way in ("as given", "simplified")} <= ran
    assert {("table", mask, "attend, sdpa") for mask in ("causal & lengths", "random half")} <= ran
    for row in right:
        assert float(row["error"]) < 1e-5
        for name in ("forward_ms", "backward_ms", "step_ms", "host_forward_ms", "host_backward_ms"):
            assert float(row[name]) >= 0, name  # a time is there; how long it is, no test asks
    for part in ("forward", "backward", "step"):
        assert max(float(row[f"{part}_of_best"]) for row in right if row["section"] == "short") == 1


def test_a_contender_that_fails_says_why_and_has_no_times(measured):
    _, rows = measured("--sections", "padded", "--masks", "causal & lengths")
    assert {row["mask"] for row in rows} == {"causal & lengths"}
    failed = {row["contender"]: row for row in rows if not row["error"]}
    assert "needs a GPU" in failed["attend, triton"]["note"]
    assert failed["flex_attention, triton"]["note"]  # FlexAttention has no backward on the CPU
    for row in failed.values():
        assert not any(cell for name, cell in row.items() if name.endswith(("_ms", "_tflops", "_of_best")))


def test_what_comes_too_late_is_said(measured):
    said, rows = measured("--seconds", "0", "--sections", "clean")
    assert said.count("no time left for attend, clean_padding=") == 2 and not rows


def test_the_hosts_time_ends_before_the_device_is_waited_for(monkeypatch):
    now, calls = [0.0], []

    def passes(seconds):
        now[0] += seconds

    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(clocks, "wait", lambda device: passes(5.0))

    def call():
        calls.append(len(calls))
        passes(0.25 * calls[-1])  # the first, which does not count, takes none

    assert median_host_ms(call, repeats=3, device="cpu") == 500 and len(calls) == 4
    calls.clear()
    assert median_ms(call, repeats=5, device="cpu") == 5750 and len(calls) == 6
    assert once_device_ms(call, device="cpu") == 6500 and len(calls) == 7


def test_the_grid_does_not_try_again_what_it_has(tmp_path):
    out = tmp_path / "grid.csv"
    rows = (ROOT / "benchmarks" / "results" / "grid.csv").read_text()
    out.write_text(rows)
    command = [sys.executable, "benchmarks/grid.py", "--backend", "flash", "--only-missing", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, env=OURS)
    assert out.read_text() == rows
