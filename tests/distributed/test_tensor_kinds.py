"""Processes whose tensors are of different kinds: each is told what differs, and nothing is exchanged."""

from tests.distributed import kind_cases
from tests.distributed.processes import everywhere

LAW = "ValueError: plan.attend gets tensors of one kind on all ranks; "

OPTIONS = {
    "dropout": "ValueError: dropout is from 0 to 1, the share of probabilities that become 0; got 1.5",
    "seed": "TypeError: dropout_seed is an integer or an integer tensor, or None to draw one; got 0.5",
    "scale": "TypeError: scale is a number, or None for 1 / sqrt(head dim); got '0.5'",
    "backend": "ValueError: backend is one of auto, decode, flash, sdpa, varlen, triton, sliced, reference; got 'fast'",
    "this backend": "ValueError: backend 'flash' cannot do this: it needs a GPU; the tensors are on cpu",
    "flag": "TypeError: deterministic is True or False; got 1",
    "score mod": "ValueError: no such score",
}
"""What rank 1 alone is wrong in, and what it is told."""


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
    for name, words in OPTIONS.items():
        told[name] = f"ValueError: rank 1 of the mesh cannot attend: {words}"
    lse = {"lse": f"{LAW}return_aux differs: rank 0 has no log-sum-exp, rank 1 has the log-sum-exp"}
    assert first == {"heads": told | lse, "gather": told, "needed": told}
    told |= {"refused": refused, **OPTIONS}
    assert second == {"heads": told | lse, "gather": told, "needed": told}


def test_transforms_of_torch_func_are_refused_in_words(tmp_path):
    for said in everywhere(2, tmp_path / "store", kind_cases.transformed):
        assert list(said) == ["grad", "vmap", "jvp", "unshard"]
        for name, words in said.items():
            function = "unshard" if name == "unshard" else "attend"
            assert words.startswith(
                f"ValueError: plan.{function} exchanges tensors with other ranks, which no transform"
            )


def test_ranks_compare_once_for_what_was_asked(tmp_path):
    everywhere(2, tmp_path / "store", kind_cases.comparisons)
