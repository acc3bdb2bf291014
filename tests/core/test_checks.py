"""Numbers that masks, scores and builders take: Python's and NumPy's alike, and no bool for an int."""

import numpy as np
import pytest
import torch

import maskloom as loom


def reaches(b, h, q_idx, kv_idx):
    return kv_idx <= q_idx + h


CALLS = {
    "window": lambda i: loom.window(back=i(3), ahead=i(1)),
    "window_counting_itself": lambda i: loom.masks.window_counting_itself(i(3)),
    "window_reaching_back": lambda i: loom.masks.window_reaching_back(i(3)),
    "window_both_ways": lambda i: loom.masks.window_both_ways(i(3)),
    "band": lambda i: loom.masks.band(i(1), i(5)),
    "dilated": lambda i: loom.masks.dilated(back=i(4), ahead=i(2), step=i(2)),
    "causal_lower_right": lambda i: loom.masks.causal_lower_right(i(3), i(5)),
    "strided": lambda i: loom.masks.strided(i(3), factor=i(2)),
    "fixed": lambda i: loom.masks.fixed(i(5), summary=i(2), factor=i(1)),
    "chunked": lambda i: loom.masks.chunked(i(3)),
    "prefix": lambda i: loom.prefix(i(3)),
    "sinks": lambda i: loom.sinks(i(3)),
    "key_range": lambda i: loom.masks.key_range(i(2), i(5)),
    "query_range": lambda i: loom.masks.query_range(i(2), i(5)),
    "global_tokens": lambda i: loom.masks.global_tokens(i(3)),
    "random_blocks": lambda i: loom.masks.random_blocks(block_size=i(3), blocks=i(2), length=i(17), seed=i(5)),
    "documents": lambda i: loom.documents(offsets=[0, 2, 5], length=i(7)),
    "shared_prefix": lambda i: loom.masks.shared_prefix(i(3), [5, 2], length=i(11)),
    "shifted": lambda i: loom.masks.shifted(loom.causal, q_offset=i(2), kv_offset=i(3), h_offset=i(1)),
    "repeat_heads": lambda i: loom.masks.repeat_heads(reaches, i(2), heads=i(3)),
    "neighbourhood": lambda i: loom.masks.neighbourhood((i(5), i(7)), i(3), dilation=i(1)),
    "grid_window": lambda i: loom.masks.grid_window((i(5), i(7)), (i(3), i(2))),
    "axial": lambda i: loom.masks.axial((i(5), i(7)), axis=i(1)),
    "shifted_windows": lambda i: loom.masks.shifted_windows((i(5), i(7)), i(3), shift=i(1)),
    "tiled": lambda i: loom.masks.tiled(loom.masks.grid_window((4, 6), 3), (i(2), i(3))),
    "grid_tiles": lambda i: loom.masks.grid_tiles((4, 6), i(2), i(1)),
    "spatial": lambda i: loom.masks.spatial(i(3), i(5), width=i(7), prompt=i(2), sink_frames=i(1)),
    "temporal": lambda i: loom.masks.temporal(i(3), i(5), width=i(2), prompt=i(2)),
    "block_diffusion": lambda i: loom.masks.block_diffusion(i(6), i(3)),
    "tree": lambda i: loom.masks.tree([-1, 0, 0], prefix=i(2)),
    "beams": lambda i: loom.masks.beams([[-1, -1], [0, 1]], prefix=i(2)),
    "flamingo": lambda i: loom.masks.flamingo([True, False], tokens_per_media=i(3)),
    "from_blocks": lambda i: loom.masks.from_blocks(torch.ones(2, 3, dtype=torch.bool), (i(5), i(3))),
    "top_k_blocks": lambda i: loom.masks.top_k_blocks([[0], [1]], i(5), key_blocks=i(3)),
    "alibi": lambda i: loom.scores.alibi(i(3)),
    "t5_buckets": lambda i: loom.scores.t5_buckets(i(8), max_distance=i(16)),
    "softcap": lambda i: loom.scores.softcap(i(30)),
    "shifted_score": lambda i: loom.scores.shifted_score(loom.scores.alibi(4), q_offset=i(2), kv_offset=i(3), h_offset=i(1)),
    "dense": lambda i: loom.causal.dense(i(3), i(5), batch=i(2), heads=i(7), q_offset=i(1)),
    "pads_from_lengths": lambda i: loom.batches.pads_from_lengths([2, 3], i(5)),
    "pads_from_tokens": lambda i: loom.batches.pads_from_tokens(torch.tensor([[1, 2, 3]]), i(3)),
    "block_mask": lambda i: loom.block_mask(
        loom.causal, i(3), i(5), batch=i(2), heads=i(7), block_size=(i(2), i(4)), q_offset=i(1), kv_offset=i(2), device="cpu"
    ).kv_indices,
    "create_block_mask": lambda i: loom.create_block_mask(
        loom.causal, i(2), i(7), i(3), i(5), BLOCK_SIZE=i(4), device="cpu"
    ).kv_indices,
    "cache": lambda i: loom.blocks.BlockMaskCache(i(3)).get(
        loom.causal, i(3), i(5), batch=i(2), heads=i(7), block_size=i(2), device="cpu"
    ).kv_indices,
    "balance": lambda i: loom.blocks.balance(loom.block_mask(loom.causal, 7, 7, block_size=2, device="cpu"), i(3)),
    "module": lambda i: repr(loom.MultiheadFlexAttention(i(3), i(4), i(2))),
}  # fmt: skip


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other and repr(one) == repr(other)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.array], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_numpy_integers_are_ints(name, kind):
    if not (name == "softcap" and kind is np.array):  # it takes any real number, and an array is none
        assert same(CALLS[name](kind), CALLS[name](int))


@pytest.mark.parametrize("kind", [bool, np.bool_, float, str], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_int_is_refused(name, kind):
    if not (name == "softcap" and kind is float):
        with pytest.raises(
            (TypeError, ValueError),
            match=r"an int|a number|shape has the number|factor is|block size is|for each of the",
        ):
            CALLS[name](kind)


X = torch.zeros(2, 3, 5, 7)

OF_LISTS = {  # what each takes, made of numbers of a kind, among others
    "lengths": lambda i: loom.lengths([i(1), 2]),
    "lengths of keys": lambda i: loom.lengths([5, 2], (3, i(1))),
    "prefix": lambda i: loom.prefix([2, i(1)]),
    "key_range": lambda i: loom.masks.key_range([i(1), 2], 5),
    "documents": lambda i: loom.documents([[0, 0], [i(1), 2]]),
    "offsets": lambda i: loom.documents(offsets=[0, i(1), 3]),
    "position_ids": lambda i: loom.documents(position_ids=[0, i(1), 2]),
    "shared_prefix": lambda i: loom.masks.shared_prefix(3, [i(1), 2]),
    "turns": lambda i: loom.masks.turns(ids=[0, i(1)], visible=[[True, False], [True, True]]),
    "tree": lambda i: loom.masks.tree([-1, 0, i(1)]),
    "prefixes of trees": lambda i: loom.masks.tree([-1, 0], prefix=[i(1), 2]),
    "beams": lambda i: loom.masks.beams([[-1, -1], [0, i(1)]]),
    "mixed_modal": lambda i: loom.masks.mixed_modal([-1, i(1)]),
    "flamingo": lambda i: loom.masks.flamingo([True, False], media_ids=[0, i(1)]),
    "top_k_blocks": lambda i: loom.masks.top_k_blocks([[0], [i(1)]], 5, key_blocks=3),
    "from_edges": lambda i: loom.masks.from_edges([i(1), 2], [0, 1]),
    "global_tokens": lambda i: loom.masks.global_tokens([i(1), 2]),
    "grid_window": lambda i: loom.masks.grid_window((5, 7), (i(1), 2)),
    "shifted": lambda i: loom.masks.shifted(loom.causal, q_offset=(i(1), 2)),
    "shifted_score": lambda i: loom.scores.shifted_score(loom.scores.alibi(4), q_offset=[2, i(1)]),
    "relative_bias": lambda i: loom.scores.relative_bias(torch.zeros(2, 4), buckets=[0, i(1), 2]),
    "attend": lambda i: loom.attend(X, X, X, loom.causal, q_offset=(i(1), 2)),
    "block_mask": lambda i: loom.block_mask(loom.causal, 3, 5, batch=2, q_offset=(i(1), 2), device="cpu").kv_indices,
    "pads_from_lengths": lambda i: loom.batches.pads_from_lengths([i(1), 2], 5),
    "pads_from_tokens": lambda i: loom.batches.pads_from_tokens([[i(1), 2]], 2),
    "offsets_from_lengths": lambda i: loom.batches.offsets_from_lengths([i(1), 2]),
    "lengths_from_offsets": lambda i: loom.batches.lengths_from_offsets([0, i(1)]),
    "pack": lambda i: loom.batches.pack(torch.zeros(2, 3), [i(1), 2]).values,
    "pack_lengths": lambda i: loom.batches.pack_lengths([i(1), 2], 5),
    "row_slices": lambda i: [piece for _, piece in loom.batches.row_slices([[0, i(1)]], [3, 2], 5)[0]],
    "lengths of rows": lambda i: loom.batches.row_slices([[0, 1]], [i(1), 2], 5),
    "fill": lambda i: loom.batches.fill([[0, 1]], [i(1), 2], 5),
}


@pytest.mark.parametrize("name", OF_LISTS)
def test_a_bool_in_a_list_is_no_int(name):
    """torch and NumPy take it for 1 beside numbers."""
    assert same(OF_LISTS[name](int), OF_LISTS[name](np.int64))
    for kind in (bool, np.bool_, lambda number: torch.tensor(bool(number))):
        with pytest.raises(TypeError, match=r"True|bool"):
            OF_LISTS[name](kind)


def test_words_of_a_bool_in_a_list():
    with pytest.raises(TypeError, match=r"^lens are integers, and not numbers and bools together; got \[True, 2\]$"):
        loom.lengths([True, 2])
    with pytest.raises(
        TypeError, match=r"^q_offset are integers, and not numbers and bools together; got \(True, 2\)$"
    ):
        loom.attend(X, X, X, loom.causal, q_offset=(True, 2))
    with pytest.raises(TypeError, match=r"^lens are integers; got torch\.bool$"):
        loom.lengths([True, False])
    with pytest.raises(TypeError, match=r"^table are bools, and not numbers and bools together; got \[\[True, 0\]\]$"):
        loom.masks.from_dense([[True, 0]])
    with pytest.raises(TypeError, match=r"^rows hold indices, ints; row 1 is \[1.0\]$"):
        loom.batches.fill([[0], [1.0]], [3, 2], 5)


ON_DEVICES = {
    "block_mask": lambda device: loom.block_mask(loom.causal, 3, 5, device=device),
    "create_block_mask": lambda device: loom.create_block_mask(loom.causal, 1, 1, 3, 5, device),
    "cache": lambda device: loom.blocks.BlockMaskCache(3).get(loom.causal, 3, 5, device=device),
    "explain_block_mask": lambda device: loom.blocks.explain_block_mask(loom.causal, 3, 5, device=device),
    "dense": lambda device: loom.causal.dense(3, 5, device=device),
    "mask.to": lambda device: loom.lengths([3]).to(device),
    "score_mod.to": lambda device: loom.scores.alibi(3).to(device),
    "to_device": lambda device: loom.blocks.to_device(loom.block_mask(loom.causal, 3, 5, device="cpu"), device),
    "packed.to": lambda device: loom.batches.pack(torch.zeros(2, 3), [1, 2]).to(device),
}


@pytest.mark.parametrize("name", ON_DEVICES)
def test_what_is_no_device_is_refused(name):
    for device in (3.5, True, torch.float32):
        with pytest.raises(TypeError, match=r"^device is a torch.device or its name, 'cpu' or 'cuda:0' say; got"):
            ON_DEVICES[name](device)
    for device in ("gpu", torch.device("cuda:99"), "xpu:3"):
        with pytest.raises(ValueError, match=r"^device is one that torch has here; got .*(gpu|cuda|xpu).*: \w"):
            ON_DEVICES[name](device)
    ON_DEVICES[name](torch.device("cpu"))


SPARSE = {
    "lengths": (lambda: loom.lengths(torch.tensor([1, 2]).to_sparse()), "lens are integers .* got a sparse_coo one"),
    "nested": (
        lambda: loom.lengths(torch.nested.nested_tensor([torch.tensor([1]), torch.tensor([2, 3])])),
        "lens are integers in a dense tensor; got a nested one",
    ),
    "padding": (lambda: loom.padding((torch.eye(3) > 0).to_sparse()), "pads is a dense bool tensor.* a sparse_coo one"),
    "pack": (
        lambda: loom.batches.pack(torch.eye(3).to_sparse_csr(), [1, 2, 3]),
        "x is a dense .* got a sparse_csr one",
    ),
}


@pytest.mark.parametrize("name", SPARSE)
def test_tensors_that_are_not_dense_are_refused(name):
    make, words = SPARSE[name]
    with pytest.raises(TypeError, match=f"^{words}"):
        make()


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_numpy_floats_are_floats(kind):
    assert loom.scores.softcap(kind(0.5)) == loom.scores.softcap(0.5)


def test_arrays_are_sequences():
    assert loom.masks.neighbourhood(np.array([3, 5]), np.array([2, 3])) == loom.masks.neighbourhood((3, 5), (2, 3))
    assert loom.masks.axial(np.array([2, 3, 5]), axis=np.array([1, 2])) == loom.masks.axial((2, 3, 5), axis=(1, 2))
    assert loom.prefix(np.array([2, 3])) == loom.prefix([2, 3])
    assert loom.lengths(np.array([2, 3], dtype=np.int16)).dense(3, 5).equal(loom.lengths([2, 3]).dense(3, 5))
    for kind in (np.int16, np.int64):
        shifted = loom.masks.shifted(loom.causal, q_offset=np.array([2, 3], dtype=kind))
        assert shifted == loom.masks.shifted(loom.causal, q_offset=[2, 3])


@pytest.mark.parametrize(
    "offset", [torch.tensor([2]), torch.tensor([[2]], dtype=torch.int32), [2], (2,), np.array([2])]
)
def test_one_element_is_for_any_batch(offset):
    mask = loom.causal & loom.lengths([2, 3, 5])
    expected = loom.masks.shifted(mask, q_offset=2).dense(3, 7)
    assert loom.masks.shifted(mask, q_offset=offset).dense(3, 7).equal(expected)
    blocks = loom.block_mask(mask, 3, 7, q_offset=offset)
    assert loom.as_mask(blocks.mask_mod).dense(3, 7).equal(expected)
    heads = loom.masks.per_head([loom.causal, loom.everything, loom.prefix(2)])
    shifted = loom.masks.shifted(heads, h_offset=offset if isinstance(offset, torch.Tensor) else int(offset[0]))
    assert shifted.dense(2, 3, heads=1).equal(heads.dense(2, 3)[:, 2:])


def test_one_element_is_a_view_and_one_object_stays_one():
    offset = torch.tensor([2])
    mask = loom.masks.shifted(loom.causal, q_offset=offset, kv_offset=offset)
    assert mask.q_offset is mask.kv_offset
    offset += 3
    assert mask.q_offset == 5


def test_words():
    with pytest.raises(TypeError, match=r"back is a number of positions, an int; got bool: True"):
        loom.window(back=True)
    with pytest.raises(TypeError, match=r"q_offset is a position, an int or int32 or int64 tensor; got 2\.5"):
        loom.masks.shifted(loom.causal, q_offset=2.5)
    with pytest.raises(TypeError, match="got True"):
        loom.masks.shifted(loom.causal, q_offset=True)
    with pytest.raises(TypeError, match=r"q_offset are integers; got torch\.float64"):
        loom.masks.shifted(loom.causal, q_offset=np.array([2.5, 3.0]))
    with pytest.raises(ValueError, match=r"n_heads is an int, at least 1; got True"):
        loom.MultiheadFlexAttention(3, 4, True)
    with pytest.raises(TypeError, match=r"axis is an axis of the grid, an int; got bool: True"):
        loom.masks.axial((3, 5), axis=True)
