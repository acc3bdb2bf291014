"""One factory for each score mod that maskloom has; every law runs on each. Tables fit B=3, H=6."""

import torch

import maskloom as loom

B, H, HKV, Q, K, D, E = 3, 6, 2, 13, 17, 8, 5


def table(columns, heads=H):
    return torch.randn(heads, columns, generator=torch.Generator().manual_seed(columns))


ALL = {
    "alibi": lambda: loom.scores.alibi(H),
    "alibi_symmetric": lambda: loom.scores.alibi(H, symmetric=True),
    "softcap": lambda: loom.scores.softcap(1.5),
    "relative_bias": lambda: loom.scores.relative_bias(table(7)),
    "relative_bias_t5": lambda: loom.scores.relative_bias(table(8), buckets=loom.scores.t5_buckets(8, max_distance=11)),
    "relative_bias_own_buckets": lambda: loom.scores.relative_bias(table(3), buckets=[2, 2, 1, 0, 1]),
    "compose": lambda: loom.scores.compose(
        loom.scores.softcap(2), loom.scores.alibi(H), loom.scores.relative_bias(table(5))
    ),
    "shifted": lambda: loom.scores.shifted_score(loom.scores.alibi(11), q_offset=4, kv_offset=-2, h_offset=5),
    "shifted_by_row": lambda: loom.scores.shifted_score(
        loom.scores.relative_bias(table(9, heads=11)),
        q_offset=[4, 0, 7],
        kv_offset=torch.tensor([1, 2, 0]),
        h_offset=torch.tensor(5),
    ),
}
