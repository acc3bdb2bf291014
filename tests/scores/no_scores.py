"""Functions with five arguments that give no score, and what is said of each."""

import torch

ONE, SEVEN = torch.ones(1), torch.ones(7)


def forgetful(score, b, h, q_idx, kv_idx):
    score + h


NO_SCORES = {
    "none": (forgetful, "gave None"),
    "number": (lambda score, b, h, q_idx, kv_idx: 0.5, "gave float"),
    "bool": (
        lambda score, b, h, q_idx, kv_idx: q_idx >= kv_idx,
        "gave a torch.bool tensor with ndim 0; a mask_mod goes to mask=",
    ),
    "one element": (lambda score, b, h, q_idx, kv_idx: score * ONE, "gave a torch.float32 tensor with ndim 1"),
    "a row": (lambda score, b, h, q_idx, kv_idx: score + SEVEN, "gave a torch.float32 tensor with ndim 1"),
    "a tuple": (lambda score, b, h, q_idx, kv_idx: (score, h), "gave tuple"),
    "complex": (
        lambda score, b, h, q_idx, kv_idx: torch.complex(score, score),
        "gave a torch.complex64 tensor with ndim 0",
    ),
}
