"""DTensors of tensor parallel and data parallel ranks, beside a mesh that shares the sequence."""

from tests.distributed import cases
from tests.distributed.processes import everywhere


def test_dtensors_of_heads_and_batch_rows(tmp_path):
    found, *others = everywhere(4, tmp_path / "store", cases.dtensors)
    assert [other["sinks"] for other in others] == [found["sinks"]] * 3
    assert [other["score_mod"] for other in others] == [found["score_mod"]] * 3
    assert found["one"] == "TypeError: query, key and value are DTensors all, or none; key is a Tensor"
    assert found["rows"].startswith(
        "ValueError: a plan takes DTensors that share batch rows, Shard(0), or heads, Shard(1), and not positions: "
        "these are shared by the plan; query is "
    )
    assert found["unlike"].startswith("ValueError: query, key and value are shared alike; query is ")
    assert found["offset"] == "ValueError: of DTensors the first head is known: give no h_offset"
    assert (
        found["sinks"]
        == "ValueError: sinks have one number for each of the 8 query heads, or of the 4 of this rank; got (9,)"
    )
    assert found["score_mod"] == "ValueError: alibi(4) is for 4 query heads; the attention has 8"
    assert found["positions"].startswith(
        "ValueError: unshard takes DTensors that share other dimensions than that of positions, which the plan shares; got (Shard(dim=2),) "
    )
