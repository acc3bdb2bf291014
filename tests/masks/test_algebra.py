"""Operators, identities, values, and the words of errors."""

import dataclasses
import functools
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.testing import check_mask
from tests.all_masks import ALL_MASKS, BATCH, HEADS, KV_LEN, Q_LEN


def dense(mask):
    return mask.dense(Q_LEN, KV_LEN, batch=BATCH, heads=HEADS)


def one_b(b, h, q_idx, kv_idx):
    return kv_idx > b


SMALL = [ALL_MASKS[name]() for name in ("causal", "window_ahead", "padding", "documents", "prefix_by_row", "nothing")]
expressions = st.recursive(
    st.sampled_from(SMALL).map(lambda mask: (mask, dense(mask))),
    lambda parts: st.one_of(
        parts.map(lambda part: (~part[0], ~part[1])),
        st.tuples(parts, parts).map(lambda two: (two[0][0] & two[1][0], two[0][1] & two[1][1])),
        st.tuples(parts, parts).map(lambda two: (two[0][0] | two[1][0], two[0][1] | two[1][1])),
        st.tuples(parts, parts).map(lambda two: (two[0][0] ^ two[1][0], two[0][1] ^ two[1][1])),
    ),
    max_leaves=6,
)


@given(expressions)
def test_any_expression_is_the_expression_of_its_tables(pair):
    mask, table = pair
    assert torch.equal(dense(mask), table)


@given(expressions)
def test_any_expression_is_a_value(pair):
    mask, _ = pair
    copy = pickle.loads(pickle.dumps(mask))
    assert copy == mask
    assert hash(copy) == hash(mask)


def test_operators_flatten():
    a, b, c = loom.causal, loom.window(back=2), loom.prefix(3)
    assert (a & b) & c == a & (b & c) == loom.and_masks(a, b, c)
    assert (a | b) | c == a | (b | c) == loom.or_masks(a, b, c)
    assert (a & b) & c != (a & c) & b  # a value, not a set


def test_identities_and_absorption():
    mask = loom.causal
    assert mask & loom.everything is mask
    assert mask | loom.nothing is mask
    assert mask ^ loom.nothing is mask
    assert mask & loom.nothing == loom.nothing
    assert mask | loom.everything == loom.everything
    assert ~loom.everything == loom.nothing
    assert ~~mask is mask
    assert loom.and_masks() == loom.everything
    assert loom.or_masks() == loom.nothing
    assert loom.and_masks(mask) is mask


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (loom.causal & loom.window(back=3) | loom.sinks(2), "causal & window(back=3, ahead=0) | sinks(2)"),
        (loom.causal & (loom.prefix(3) | loom.sinks(2)), "causal & (prefix(3) | sinks(2))"),
        (~(loom.causal & loom.prefix(3)), "~(causal & prefix(3))"),
        (loom.causal ^ (loom.prefix(3) ^ loom.sinks(1)) & loom.causal, "causal ^ (prefix(3) ^ sinks(1)) & causal"),
        (loom.causal & loom.lengths([3, 5]), "causal & lengths(int64[2])"),
        (loom.documents(offsets=[0, 3, 5]), "documents(offsets=int64[3])"),
        (loom.as_mask(one_b), "as_mask(one_b)"),
    ],
)
def test_repr_reads_like_the_code(mask, shown):
    assert repr(mask) == shown
    assert mask.__name__ == shown  # what BlockMask's repr and torch.vmap call it


def test_plain_functions_combine_with_masks_on_either_side():
    for left, right in ((loom.causal, one_b), (one_b, loom.causal)):
        assert torch.equal(dense(left & right), dense(loom.causal) & dense(loom.as_mask(one_b)))
        assert torch.equal(dense(left | right), dense(loom.causal) | dense(loom.as_mask(one_b)))
        assert torch.equal(dense(left ^ right), dense(loom.causal) ^ dense(loom.as_mask(one_b)))


def test_as_mask_opens_torchs_compositions():
    assert loom.as_mask(flex.and_masks(loom.causal, loom.prefix(2))) == loom.causal & loom.prefix(2)
    nested = flex.or_masks(flex.and_masks(loom.causal, one_b), loom.prefix(2))
    assert loom.as_mask(nested) == (loom.causal & one_b) | loom.prefix(2)


def test_masks_work_inside_torchs_compositions():
    table = flex.create_mask(flex.and_masks(loom.causal, loom.prefix(5)), None, None, 7, 11, device="cpu")
    assert torch.equal(table, (loom.causal & loom.prefix(5)).dense(7, 11))


def test_equality_compares_tables_by_value():
    assert loom.lengths([3, 5]) == loom.lengths(torch.tensor([3, 5]))
    assert loom.lengths([3, 5]) != loom.lengths([3, 4])
    assert loom.lengths([3, 5]) != loom.lengths(torch.tensor([3, 5], dtype=torch.int32))
    assert loom.window(back=1) != loom.window(back=2)
    assert loom.prefix(1) != loom.sinks(1)
    assert len({loom.window(back=1), loom.window(back=1), loom.causal}) == 2


@pytest.mark.parametrize(
    "ask", [lambda: bool(loom.causal), lambda: loom.causal and loom.causal, lambda: not loom.causal]
)
def test_a_mask_has_no_truth_value(ask):
    with pytest.raises(TypeError, match=r"combine masks with & \| \^ ~, not with and, or, not \(mask: causal\)"):
        ask()


def test_causal_is_not_a_factory():
    with pytest.raises(TypeError, match="causal is itself a mask"):
        loom.causal()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (3, "a mask is a function .* got int: 3"),
        (lambda b, h: b, "takes four arguments .* takes 2"),
        (lambda score, b, h, q_idx, kv_idx: score, "takes 5; with five it looks like a score_mod"),
    ],
)
def test_what_is_no_mask(what, words):
    with pytest.raises(TypeError, match=words):
        loom.as_mask(what)


def test_an_operator_with_something_else_is_pythons_error():
    with pytest.raises(TypeError, match="unsupported operand"):
        loom.causal & 3


def test_partials_methods_and_callable_objects_are_masks():
    class Later:
        def __init__(self, by):
            self.by = by

        def __call__(self, b, h, q_idx, kv_idx):
            return kv_idx >= self.by

        def method(self, b, h, q_idx, kv_idx):
            return kv_idx >= self.by

    def later(by, b, h, q_idx, kv_idx):
        return kv_idx >= by

    tables = [loom.as_mask(made).dense(3, 5) for made in (Later(2), Later(2).method, functools.partial(later, 2))]
    for table in tables:
        assert table[0, 0].tolist() == [[False, False, True, True, True]] * 3


def test_a_class_of_ones_own():
    @loom.masks.mask_dataclass
    class Stripes(loom.Mask):
        width: int

        def __call__(self, b, h, q_idx, kv_idx):
            return (q_idx // self.width) % 2 == (kv_idx // self.width) % 2

    mask = Stripes(3)
    assert repr(mask) == "Stripes(3)"
    assert mask == Stripes(3) != Stripes(2)
    check_mask(mask & loom.as_mask(one_b), batch=3)

    class Forgetful(loom.Mask):
        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx >= kv_idx

    with pytest.raises(TypeError, match=r"decorate Forgetful with maskloom\.masks\.mask_dataclass"):
        hash(Forgetful())


def undecorated():
    """Masks of classes that `mask_dataclass` has not seen, or not all of."""

    class Bare(loom.Mask):
        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx >= kv_idx

    class Held(loom.Mask):
        def __init__(self, table):
            self.table = table

        def __call__(self, b, h, q_idx, kv_idx):
            return self.table[kv_idx]

    @dataclasses.dataclass
    class Other(loom.Mask):
        n: int

        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx >= kv_idx + self.n

    @loom.masks.mask_dataclass
    class Decorated(loom.Mask):
        n: int

        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx >= kv_idx + self.n

    class More(Decorated):
        def __init__(self, n, more):
            vars(self).update(n=n, more=more)

    class Typed(Decorated):
        more: int = 3

    class Same(Decorated):
        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx > kv_idx + self.n

    wrong = [Bare(), Held(torch.ones(5) > 0), Other(3), More(3, 2), Typed(3)]
    return {type(mask).__name__: mask for mask in wrong}, Same(0)


@pytest.mark.parametrize("name", ["Bare", "Held", "Other", "More", "Typed"])
def test_a_class_that_is_not_decorated_is_refused_where_it_is_used(name):
    """What it holds beside its fields is not compared, and what is kept for it would not change with it."""
    mask, x = undecorated()[0][name], torch.zeros(1, 1, 5, 8)
    for use in (
        lambda: mask.dense(5, 5),
        lambda: mask & loom.causal,
        lambda: loom.causal | mask,
        lambda: ~mask,
        lambda: loom.block_mask(mask, 5, 5),
        lambda: loom.create_block_mask(mask, None, None, 5, 5),
        lambda: loom.attend(x, x, x, mask),
        lambda: loom.attention_weights(x, x, mask),
        lambda: loom.masks.shifted(mask, q_offset=2),
    ):
        with pytest.raises(
            TypeError, match=rf"^a Mask is a frozen dataclass; decorate {name} with maskloom\.masks\.mask_data"
        ):
            use()


def test_a_subclass_that_adds_no_fields_need_not_be_decorated():
    mask = undecorated()[1]
    assert mask.dense(3, 3).tolist() == [[[[False] * 3, [True, False, False], [True, True, False]]]]


def test_check_mask_names_the_law_that_is_broken():
    @loom.masks.mask_dataclass
    class Wrong(loom.Mask):
        lens: torch.Tensor

        def __call__(self, b, h, q_idx, kv_idx):
            return (self.lens <= q_idx).any()  # a scalar function that does not broadcast

    with pytest.raises((AssertionError, RuntimeError), match=r"broadcasting|size of tensor"):
        check_mask(Wrong(torch.tensor([3, 5])))


def test_dense_checks_its_lengths():
    with pytest.raises(ValueError, match="q_len is a number of positions, at least 1; got 0"):
        loom.causal.dense(0, 3)
    with pytest.raises(ValueError, match="a table with 17 positions, and there are 19 keys"):
        ALL_MASKS["padding"]().dense(13, 19)
    with pytest.raises(ValueError, match="a table with 17 positions, and there are 18 queries"):
        ALL_MASKS["padding"]().dense(13, 17, q_offset=5)


def test_dense_takes_the_smallest_batch_that_the_mask_needs():
    assert loom.causal.dense(2, 3).shape == (1, 1, 2, 3)
    assert loom.lengths([1, 2, 3, 4, 5]).dense(2, 3).shape == (5, 1, 2, 3)
    assert loom.causal.dense(2, 3, batch=5, heads=7).shape == (5, 7, 2, 3)
    assert loom.causal.dense(2, 3, q_offset=torch.tensor(1))[0, 0].tolist() == [[True, True, False], [True, True, True]]


def test_a_module_is_asked_for_the_arguments_of_its_forward():
    with pytest.raises(TypeError, match=r"a mask_mod takes four arguments .* takes 1"):
        loom.as_mask(torch.nn.Linear(2, 2))

    def named(b, h, q_idx, kv_idx, *, back):
        return q_idx - kv_idx <= back

    with pytest.raises(TypeError, match=r"a mask_mod takes four arguments .* takes 5"):
        loom.as_mask(named)

    class Near(torch.nn.Module):
        def forward(self, b, h, q_idx, kv_idx):
            return q_idx - kv_idx <= 2

    assert loom.as_mask(Near()).dense(5, 5).sum() == 22


@loom.masks.mask_dataclass
class AtLeast(loom.masks.Mask):
    """A query sees keys that are so many positions before it, or more."""

    number: int
    name = "AtLeast"

    def __call__(self, b, h, q_idx, kv_idx):
        return q_idx - kv_idx >= self.number


@loom.masks.mask_dataclass
class OnlyLifted(AtLeast):
    """Right under vmap, and of indices with dimensions something else."""

    name = "OnlyLifted"

    def __call__(self, b, h, q_idx, kv_idx):
        return torch.ones(64, 64, dtype=torch.bool)[q_idx][kv_idx]


def test_laws_of_a_class_without_tensors_outside_of_maskloom():
    check_mask(AtLeast(2))
    check_mask(AtLeast(2) & loom.causal | ~AtLeast(5))
    with pytest.raises(AssertionError, match="broken law of masks: broadcasting gives what vmap gives"):
        check_mask(OnlyLifted(2))
