"""The pairs that dropout keeps, as a table."""

import torch

from maskloom.attention.dropout.generator import dropping_of
from maskloom.attention.dropout.passes import kept_rows
from maskloom.attention.request import Dropout
from maskloom.scores.shift import shifted_score


def dropping(rate, seed, *sizes, **offsets):
    """What drops pairs of B, H, Q, K."""
    seed = torch.as_tensor(seed)
    return dropping_of(rate, seed, sizes, lambda one: shifted_score(one, **offsets), by_slots=False)


def kept(rate, seed, *sizes, **offsets):
    """bool (B, H, Q, K)."""
    batch, heads, q_len, kv_len = sizes
    query = torch.empty(batch, heads, q_len, 0)
    return kept_rows(Dropout(1.0, dropping(rate, seed, *sizes, **offsets)), query, kv_len, 0)
