"""Processes whose tensors are of different kinds: each is told what differs, and nothing is exchanged."""

from tests.distributed import kind_cases
from tests.distributed.processes import everywhere

LAW = "ValueError: plan.attend gets tensors of one kind on all ranks; "


def test_what_differs_is_named_on_every_rank(tmp_path):
    first, second = everywhere(2, tmp_path / "store", kind_cases.disagreements)
    refused = "ValueError: query has the rows of one rank, (batch, heads, 19, head dim); got (2, 6, 18, 3)"
    told = {
        "dtype": f"{LAW}the dtype differs: rank 0 has torch.float64, rank 1 has torch.float32",
        "batch": f"{LAW}the batch size differs: rank 0 has 2, rank 1 has 3",
        "key heads": f"{LAW}the number of key heads differs: rank 0 has 2, rank 1 has 3",
        "head dim": f"{LAW}the head dim of query and key differs: rank 0 has 3, rank 1 has 7",
        "value dim": f"{LAW}the head dim of value differs: rank 0 has 5, rank 1 has 7",
        "refused": f"ValueError: rank 1 of the mesh cannot attend: {refused}",
        "heads": f"{LAW}the number of query heads differs: rank 0 has 2, rank 1 has 4",
        "h_offset": f"{LAW}h_offset differs: rank 0 has 0, rank 1 has 2",
        "autocast": f"{LAW}the dtype differs: rank 0 has torch.float32, rank 1 has torch.bfloat16",
    }
    lse = {"lse": f"{LAW}return_aux differs: rank 0 has no log-sum-exp, rank 1 has the log-sum-exp"}
    assert first == {"heads": told | lse, "gather": told, "needed": told}
    told["refused"] = refused
    assert second == {"heads": told | lse, "gather": told, "needed": told}


def test_ranks_compare_once_for_what_was_asked(tmp_path):
    everywhere(2, tmp_path / "store", kind_cases.comparisons)
