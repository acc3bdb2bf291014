"""What `plan` refuses, and keeps; the words of errors of plans."""

from tests.distributed import cases
from tests.distributed.processes import everywhere


def test_what_is_refused_is_named(tmp_path):
    first, second = everywhere(2, tmp_path / "store", cases.refusals)
    assert first == second
    second = "attention by a plan has no second derivative; take the first one without create_graph=True"
    names = '"auto", or one of heads, gather, needed'
    assert first == {
        "mask": "TypeError: a mask is a function (b, h, q_idx, kv_idx) -> bool; got int: 3",
        "mesh": "TypeError: mesh is a DeviceMesh, as init_device_mesh makes it; got 'cp'",
        "length 0": "ValueError: length is a number of positions, at least 1; got 0",
        "word": f"ValueError: strategy is {names} for each of the 1 dimensions of the mesh; got 'ring'",
        "one name for two": f"ValueError: strategy is {names} for each of the 2 dimensions of the mesh; got 'heads'",
        "two rows": (
            'ValueError: one dimension shares heads, and one rows: ("heads", "gather") or ("heads", "needed"); '
            "got ('gather', 'needed')"
        ),
        "ratio": "ValueError: the query heads are a multiple of the key heads; got 6 and 4",
        "table": "ValueError: the mask reads a table with 9 positions, and there are 37 queries",
        "dtype": "TypeError: dtype is that of query, key and value, a floating point torch.dtype; got 'bf16'",
        "dtype of ints": "TypeError: dtype is that of query, key and value, a floating point torch.dtype; got torch.int64",
        "overlap": (
            "ValueError: overlap=True is for strategy \"gather\", whose keys come in meanwhile; got strategy='heads'"
        ),
        "rows": "ValueError: query has the rows of one rank, (batch, heads, 19, head dim); got (2, 6, 18, 3)",
        "heads": (
            "ValueError: the plan is for 6 query heads; query is (2, 4, 19, 3). Of some of the heads say which, "
            "h_offset= the first"
        ),
        "heads beyond": "ValueError: the plan is for 6 query heads; heads 3 to 6 are asked for",
        "share": (
            'ValueError: strategy "heads" gives each rank as many query heads; there are 3 heads and 2 ranks: '
            'plan with strategy="gather" or "needed"'
        ),
        "batch": "ValueError: the plan is for a mask of 2 batch rows; query is (1, 6, 19, 3)",
        "padding": (
            "ValueError: clean_padding needs a mask that says where padding is: lengths, real, padding, key_padding, "
            "documents or from_dense, alone or joined to others with &; got causal"
        ),
        "score_mod": "ValueError: alibi(4) is for 4 query heads; the attention has 6",
        "sinks": "ValueError: sinks has shape (H,) = (6,), a score for each head; got (3,)",
        "shard": "ValueError: shard takes 37 rows in dim 0; got shape (36,)",
        "shard dim": "TypeError: dim is an int; got 0.0",
        "fill of bytes": "ValueError: fill is a number of the tensor's dtype, torch.uint8; got -100",
        "fill of flags": "ValueError: fill is a number of the tensor's dtype, torch.bool; got -100",
        "fill of labels": "ValueError: fill is a number of the tensor's dtype, torch.int64; got 0.5",
        "fill nan": "ValueError: fill is a number of the tensor's dtype, torch.int64; got nan",
        "fill of half": "ValueError: fill is a number of the tensor's dtype, torch.float16; got 1000000.0",
        "fill text": "TypeError: fill is a number; got 'x'",
        "unshard": "ValueError: unshard takes 19 rows in dim 0; got shape (37,)",
        "grads": 'ValueError: grads is "same" or "sum"; got \'mean\'',
        **{f"second {strategy}": second for strategy in cases.STRATEGIES},
    }


def test_plans_are_kept_by_what_was_asked(tmp_path):
    everywhere(2, tmp_path / "store", cases.kept)
