"""Rounding and wrapping: numbers.js against torch."""

import json

import pytest
import torch

from tests.show.explorer.engine import value


def edges(dtype):
    """Numbers around those that a dtype holds, and halfway between them."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (300,), generator=generator, dtype=torch.int16)
    held = bits.view(dtype).double()
    held = held[held.isfinite()]
    following = torch.nextafter(held.to(torch.float32), torch.tensor(float("inf"))).double()
    halfway = (held + torch.roll(held, 1)) / 2
    return torch.cat(
        [held, following, halfway, torch.tensor([65504.0, 65519.0, 65520.0, 3.4e38, 2.0**-25, 3 * 2.0**-25, 0.0])]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_to_even(dtype):
    numbers = edges(dtype).float().double()
    name = str(dtype).removeprefix("torch.")
    found = value(f"{json.dumps(numbers.tolist())}.map(ROUNDS.{name}).map((x) => Number.isFinite(x) ? x : String(x))")
    want = numbers.float().to(dtype).double().tolist()
    assert [float(str(one).replace("Infinity", "inf")) for one in found] == want


def test_large_integers_round_once_to_float32():
    numbers = [2**53 + 1, 2**60 + 2**36 + 1, -(2**60) - 2**36 - 1, 2**60 + 2**36, 2**63 - 1, -(2**63), 16777217]
    found = value(f"{json.dumps([str(number) for number in numbers])}.map((x) => bigToSingle(BigInt(x)))")
    assert list(map(float, found)) == torch.tensor(numbers).float().double().tolist()


def test_base64_is_read():
    import base64

    for length in range(8):
        data = bytes(range(200, 200 + length))
        text = base64.b64encode(data).decode()
        assert value(f"[...fromBase64({json.dumps(text)})]") == list(data)
