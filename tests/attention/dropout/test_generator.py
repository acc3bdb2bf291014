"""Which pairs dropout keeps: a function of seed, row, head, query and key, the same in int32 and int64, and random to look at."""

import itertools
import random

import pytest
import torch

import maskloom as loom
from maskloom.attention.dropout.generator import mixed, pair_word
from maskloom.program.getitem import IndexByScalars
from tests.attention.dropout.pairs import dropping, kept

B, H, Q, K = 3, 5, 257, 509  # 1.96 million pairs
RATES = (0.1, 0.5, 0.03)


def bits_in_python(seed, b, h, q):
    """SplitMix64 of a row's counter, with Python's integers, which never wrap."""
    most = 2**64 - 1
    bits = ((seed * 0x9E3779B97F4A7C15 + b) * 0xBF58476D1CE4E5B9 + h) * 0xD1342543DE82EF95 + q
    bits = (bits * 0x2545F4914F6CDD1D) & most
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & most
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & most
    return bits ^ (bits >> 31)


def word_in_python(one, two, k):
    most = 2**31 - 1
    word = (one + k) & most
    word = ((word ^ (word >> 15)) * 0x7993EAA7) & most
    word = ((word ^ (word >> 13) ^ two) * 0x2C7A3D35) & most
    return ((word ^ (word >> 16)) * 0x31848BAB) & most


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**62 + 12345, -(2**63), 2**63 - 1])
def test_rows_are_those_of_unbounded_integers(seed):
    found = dropping(0.5, seed, 2, 3, 5, 7, q_offset=70_001, h_offset=11)
    for b, h, q in itertools.product(range(2), range(3), range(5)):
        bits = bits_in_python(seed, b, h + 11, q + 70_001)
        assert (found.one[b, h, q], found.two[b, h, q]) == (bits % 2**31, (bits >> 31) % 2**31)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_words_are_those_of_unbounded_integers(dtype):
    """int32 wraps, int64 does not: kernels have indices in the first, torch in the second."""
    numbers = [0, 1, 2, 127, 128, 70_001, 2**30 + 3, 2**31 - 1]
    generator = random.Random(0)
    places = [[generator.choice([*numbers, generator.randrange(2**31)]) for _ in range(500)] for _ in range(3)]
    found = pair_word(*[torch.tensor(at, dtype=dtype) for at in places])
    assert found.dtype == dtype
    assert found.tolist() == [word_in_python(*at) for at in zip(*places, strict=True)]


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_of_all_rows_keys_and_heads(rate):
    dropped = ~kept(rate, 7, B, H, Q, K)
    for dims in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (2, 3), (1, 2, 3)):
        shares = dropped.double().mean(dims)
        expected = (rate * (1 - rate) / (dropped.numel() / shares.numel())) ** 0.5
        assert (shares - rate).abs().max() < 5 * expected
        if shares.numel() > 100:  # as far from the rate as chance has it, no farther and no nearer
            assert 0.75 < shares.std() / expected < 1.25


def correlation(left, right):
    """Of two tables of bools, in standard errors."""
    left, right = (table.flatten().double() - table.double().mean() for table in (left, right))
    return float((left @ right) / (left.norm() * right.norm())) * left.numel() ** 0.5


@pytest.mark.parametrize("rate", RATES)
def test_rows_keys_heads_and_steps_are_independent(rate):
    table = kept(rate, 7, B, H, Q, K)
    for step in (1, 2, 3, 64, 128):
        assert abs(correlation(table[:, :, step:], table[:, :, :-step])) < 5, f"queries {step} apart"
        assert abs(correlation(table[..., step:], table[..., :-step])) < 5, f"keys {step} apart"
        assert abs(correlation(table[:, :, step:, step:], table[:, :, :-step, :-step])) < 5, f"both {step} apart"
    above = torch.ones(Q, Q, dtype=torch.bool).triu(1)
    square = table[:, :, :, :Q]
    assert abs(correlation(square[..., above], square.transpose(2, 3)[..., above])) < 5
    for h in range(1, H):
        assert abs(correlation(table[:, h], table[:, 0])) < 5
    assert abs(correlation(table[1:], table[:-1])) < 5
    assert abs(correlation(table[[0, 0, 1], [1, 2, 2]], table[[1, 2, 2], [0, 0, 1]])) < 5
    for seed in (8, 9, 7 + 2**31, 7 + 2**40, 7 - 2**62, -7):
        assert abs(correlation(kept(rate, seed, B, H, Q, K), table)) < 5, f"seed {seed}"


def test_seeds_one_after_another_and_pairs_of_them():
    """One pair at 20,000 seeds: steps of a training that counts its seed up."""
    seeds = torch.arange(20_000)
    dropped = torch.stack([~kept(0.3, int(seed), 1, 1, 2, 3)[0, 0] for seed in seeds[:500]])
    assert (dropped.double().mean(0) - 0.3).abs().max() < 5 * (0.21 / 500) ** 0.5
    bits = mixed(seeds * -7046029254386353131)
    words = pair_word(bits & (2**31 - 1), (bits >> 31) & (2**31 - 1), torch.tensor(5))
    flips = words < 0.3 * 2**31
    assert abs(float(flips.double().mean()) - 0.3) < 5 * (0.21 / 20_000) ** 0.5
    for step in (1, 2, 3, 17):
        assert abs(correlation(flips[step:], flips[:-step])) < 5


@pytest.mark.parametrize("axis", [0, 2])
def test_one_bit_of_a_row_or_key_changes_half_of_all_bits(axis):
    generator = torch.Generator().manual_seed(axis)
    places = [torch.randint(2**31 - 1, (4000,), generator=generator) for _ in range(3)]
    before = pair_word(*places)
    for bit in range(31):
        changed = [at ^ (1 << bit) if place == axis else at for place, at in enumerate(places)]
        difference = before ^ pair_word(*changed)
        top = [float(((difference >> which) & 1).double().mean()) for which in range(16, 31)]
        assert max(abs(share - 0.5) for share in top) < 0.06, f"bit {bit}"


def test_words_are_spread_evenly():
    found = dropping(0.5, 3, B, H, Q, K)
    words = pair_word(found.one[..., None], found.two[..., None], torch.arange(K)).flatten()
    counts = torch.bincount(words >> 23, minlength=256).double()
    expected = words.numel() / 256
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
    assert words.unique().numel() > 0.999 * words.numel()  # of 2 million in 2 ** 31, some 900 are expected twice


def test_seeds_differ_in_each_of_their_64_bits():
    tables = [kept(0.5, seed, 1, 2, 11, 13) for seed in (0, 1, -1, 2**31, 2**62, -(2**63))]
    assert all(not torch.equal(one, other) for at, one in enumerate(tables) for other in tables[:at])


def test_places_are_absolute():
    whole = kept(0.4, 3, 2, 5, 11, 7)
    assert torch.equal(kept(0.4, 3, 2, 3, 5, 7, q_offset=4, h_offset=2), whole[:, 2:, 4:9])
    rows = kept(0.4, 3, 2, 5, 3, 7, q_offset=torch.tensor([1, 6]))
    assert torch.equal(rows, torch.stack([whole[0, :, 1:4], whole[1, :, 6:9]]))


def test_vmap_over_scalars_gives_what_broadcasting_gives():
    lifted = dropping(0.4, 3, 2, 3, 5, 7)
    for at in (3, 2, 1, 0):
        lifted = torch.vmap(lifted, in_dims=(None, *(0 if at == index else None for index in range(4))))
    with IndexByScalars():
        found = lifted(torch.tensor(1.5), *[torch.arange(size) for size in (2, 3, 5, 7)])
    assert torch.equal(found == 1.5, kept(0.4, 3, 2, 3, 5, 7)) and found.eq(1.5).logical_or(found.isneginf()).all()


def test_it_is_a_value():
    one = dropping(0.4, 3, 2, 3, 5, 7)
    assert one == dropping(0.4, 3, 2, 3, 5, 7) != dropping(0.4, 4, 2, 3, 5, 7)
    assert repr(one) == "Dropping(int32[2, 3, 5], int32[2, 3, 5], None, int32[])"
    assert one.adds


def test_a_compiled_kernel_finds_the_same_pairs():
    """FlexAttention compiled for the CPU, where it has a forward alone."""
    from torch.nn.attention.flex_attention import flex_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16, generator=generator) for length in (130, 150, 150))
    out = torch.compile(flex_attention, fullgraph=True)(q, k, v, dropping(0.3, 11, 2, 3, 130, 150))
    table = kept(0.3, 11, 2, 3, 130, 150)
    torch.testing.assert_close(out, loom.attend(q, k, v, table), rtol=1e-4, atol=1e-5)
