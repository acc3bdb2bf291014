"""One factory for each score mod that maskloom has; every law runs on each. Tables fit B=3, H=6."""

import torch

import maskloom as loom

B, H, HKV, Q, K, D, E = 3, 6, 2, 13, 17, 8, 5


def table(columns, heads=H):
    return torch.randn(heads, columns, generator=torch.Generator().manual_seed(columns))


ALL = {
    "alibi": lambda: loom.alibi(H),
    "alibi_symmetric": lambda: loom.alibi(H, symmetric=True),
    "softcap": lambda: loom.softcap(1.5),
    "relative_bias": lambda: loom.relative_bias(table(7)),
    "relative_bias_t5": lambda: loom.relative_bias(table(8), buckets=loom.t5_buckets(8, max_distance=11)),
    "relative_bias_own_buckets": lambda: loom.relative_bias(table(3), buckets=[2, 2, 1, 0, 1]),
    "compose": lambda: loom.compose(loom.softcap(2), loom.alibi(H), loom.relative_bias(table(5))),
    "shifted": lambda: loom.shifted_score(loom.alibi(11), q_offset=4, kv_offset=-2, h_offset=5),
    "shifted_by_row": lambda: loom.shifted_score(
        loom.relative_bias(table(9, heads=11)),
        q_offset=[4, 0, 7],
        kv_offset=torch.tensor([1, 2, 0]),
        h_offset=torch.tensor(5),
    ),
}
