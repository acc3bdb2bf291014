"""The benchmark of padding in the module: its batches have the shares that its rows say."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_of_padding():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("padding_module", BENCHMARKS / "padding_module.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["padding_module"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("padding_module", None)


def test_lengths_have_the_share(benchmark_of_padding):
    for batch, length in ((32, 1024), (8, 4096), (2, 16384), (1, 32768)):
        for share in benchmark_of_padding.SHARES:
            lens = benchmark_of_padding.lengths_of(benchmark_of_padding.Size(64, batch, length), share)
            assert len(lens) == batch
            assert min(lens) >= 0 and max(lens) <= length
            assert abs(sum(lens) / (batch * length) - share) < 0.001


def test_the_table_says_what_is_over_its_bound(benchmark_of_padding):
    kind = {"mode": "eager", "width": 64, "batch": 8, "length": 128, "share": 0.5, "bound": 0.55, "graphs": ""}
    rows = [
        kind | {"real": 1.0, "contender": "full", "ms": 2.0, "of_full": 1.0, "row_of_full": 1.0, "gpu_of_full": 1.0},
        kind | {"real": 0.5, "contender": "host", "ms": 1.2, "of_full": 0.6, "row_of_full": 0.58, "gpu_of_full": 0.5},
    ]
    told = benchmark_of_padding.told(rows)
    assert told.splitlines()[0].startswith("eager d 64, 8 x 128, full 2.00 ms")
    assert "real 0.50 bound 0.55 OVER: host 0.60 0.58 0.50" in told
