"""One factory for each mask that maskloom has; every law runs on each. Tables fit B=3, H=2, Q=13, K=17."""

import torch

import maskloom as loom

BATCH, HEADS, Q_LEN, KV_LEN = 3, 2, 13, 17


def _pads(rows: int = BATCH, length: int = KV_LEN) -> torch.Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(length)) < 0.3


ALL_MASKS = {
    "everything": lambda: loom.everything,
    "nothing": lambda: loom.nothing,
    "causal": lambda: loom.causal,
    "window": lambda: loom.window(back=3),
    "window_ahead": lambda: loom.window(back=1, ahead=5),
    "lengths": lambda: loom.lengths([5, 0, 17]),
    "lengths_cross": lambda: loom.lengths([5, 13, 2], [7, 11, 17]),
    "real": lambda: loom.real(~_pads()),
    "real_from_ones": lambda: loom.real((~_pads()).long()),
    "padding": lambda: loom.padding(_pads()),
    "padding_cross": lambda: loom.padding(_pads(length=Q_LEN), _pads()),
    "key_padding": lambda: loom.key_padding(_pads()),
    "documents": lambda: loom.documents(torch.tensor([0, 0, 3, 3, 3, -1, 5, 5, 0, 2, 2, 2, 2, 2, 7, 7, 7])),
    "documents_by_row": lambda: loom.documents(
        torch.randint(-1, 4, (BATCH, KV_LEN), generator=torch.Generator().manual_seed(1))
    ),
    "documents_packed": lambda: loom.documents(offsets=[0, 2, 2, 11], length=KV_LEN),
    "prefix": lambda: loom.prefix(4),
    "prefix_by_row": lambda: loom.prefix([2, 0, 11]),
    "sinks": lambda: loom.sinks(2),
    "and": lambda: loom.causal & loom.lengths([5, 0, 17]) & loom.window(back=7),
    "or": lambda: loom.window(back=2) | loom.sinks(3) | loom.padding(_pads()),
    "xor": lambda: loom.causal ^ loom.prefix(5),
    "not": lambda: ~(loom.causal & loom.padding(_pads())),
    "mixed": lambda: (loom.window(back=3) | loom.sinks(1)) & ~loom.documents(torch.arange(KV_LEN) // 5) ^ loom.causal,
}
