"""What the attention benchmarks check against and divide by; and that they run."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maskloom as loom
from benchmarks.attention_cases import flops, make_batch, truth, visible_pairs, worst_error

ROOT = Path(__file__).parent.parent.parent


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


def test_truth_is_the_reference_in_one_piece(batch):
    mask = loom.causal & loom.lengths(batch.lens)
    leaves = [tensor.double().requires_grad_() for tensor in batch.inputs]
    out, _ = loom.reference(*leaves, mask)
    out.backward(batch.grad.double())
    whole = [batch.real(tensor) for tensor in (out.detach(), *(leaf.grad for leaf in leaves))]
    assert worst_error(truth(mask, batch), whole) < 1e-6


def test_an_error_that_is_not_a_number_is_infinite():
    assert worst_error([torch.tensor([float("nan")])], [torch.ones(1)]) == float("inf")


def test_the_benchmark_runs(tmp_path):
    out = tmp_path / "rows.csv"
    command = [sys.executable, "benchmarks/attention_gpu.py", "--tiny", "--device", "cpu", "--repeats", "1"]
    subprocess.run([*command, "--sections", "short", "simplify", "--out", str(out)], cwd=ROOT, check=True)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    ran = {(row["section"], row["contender"]) for row in rows if row["error"]}
    assert {("short", "sdpa, dense mask"), ("short", "attend, auto"), ("simplify", "attend, simplified")} <= ran
    assert all(float(row["forward_ms"]) > 0 and float(row["error"]) < 1e-5 for row in rows if row["error"])
    assert any("needs a GPU" in row["note"] for row in rows if row["contender"] == "attend, triton")
