"""DTensors of tensor parallel and data parallel ranks, beside a mesh that shares the sequence."""

from tests.distributed import cases
from tests.distributed.processes import everywhere


def test_dtensors_of_heads_and_batch_rows(tmp_path):
    found = everywhere(4, tmp_path / "store", cases.dtensors)[0]
    assert found["one"] == "TypeError: query, key and value are DTensors all, or none; key is a Tensor"
    assert found["rows"].startswith(
        "ValueError: a plan takes DTensors that share batch rows, Shard(0), or heads, Shard(1), and not positions: "
        "these are shared by the plan; query is "
    )
    assert found["unlike"].startswith("ValueError: query, key and value are shared alike; query is ")
    assert found["offset"] == "ValueError: of DTensors the first head is known: give no h_offset"
