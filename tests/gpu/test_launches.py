"""What a kernel is launched with by `core.launches`, against Triton's own way; and that Triton is asked once for arguments of one kind."""

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
from triton import language as tl  # type: ignore[import-not-found, unused-ignore]

from maskloom.core.launches import Launches


@triton.jit(do_not_specialize=["length"])
def _multiplied(source, out, factor, length, step, WIDE: tl.constexpr, ADDED: tl.constexpr):
    at = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    values = tl.load(source + at.to(tl.int64) * step, mask=at < length, other=0)
    tl.store(out + at, values * factor + ADDED, mask=at < length)


class Counted:
    """A kernel that counts how often Triton is asked for it."""

    def __init__(self, kernel):
        self.kernel, self.arg_names, self.times = kernel, kernel.arg_names, 0

    def __getitem__(self, grid):
        self.times += 1
        return self.kernel[grid]


def launched(launch, source, factor=2.5, step=1, wide=64, added=3):
    length = (source.numel() + step - 1) // step
    out = torch.zeros(length, device="cuda", dtype=source.dtype)
    constants = {"WIDE": wide, "ADDED": added, "num_warps": 2}
    launch((triton.cdiv(length, wide), 1, 1), (source, out), (factor, length, step), constants)
    expected = source[::step].double() * factor + added
    torch.testing.assert_close(out, expected.to(source.dtype))


def test_arguments_of_all_kinds():
    kernel = Counted(_multiplied)
    launch = Launches(kernel)
    store = torch.randn(5000, device="cuda")
    for _ in range(3):
        for dtype in (torch.float32, torch.float16):
            for first in (0, 1, 4, 8):  # addresses that are multiples of 16, and others
                for step in (1, 2, 16, 17, 48):
                    launched(launch, store.to(dtype)[first:], step=step)
        launched(launch, store, wide=128)
        launched(launch, store, added=4)
    assert kernel.times <= 2 * 2 * 3 * 2 + 2 * 2  # dtypes, addresses, steps, lengths that are multiples of 16 or not


def test_numbers_beyond_32_bits():
    launch = Launches(_multiplied)
    source, out = torch.full((1,), 7.0, device="cuda"), torch.zeros(1, device="cuda")
    constants = {"WIDE": 16, "ADDED": 1, "num_warps": 1}
    for _ in range(2):
        for step in (5, 1 << 33, (1 << 33) + 1):  # of one entry, so that nothing is read there
            launch((1, 1, 1), (source, out.zero_()), (2.0, 1, step), constants)
            assert out.item() == 15


def test_triton_is_asked_once():
    kernel = Counted(_multiplied)
    launch = Launches(kernel)
    store = torch.randn(5000, device="cuda")
    for length in range(4001, 4800, 2):
        launched(launch, store[:length], factor=length / 7)
    assert kernel.times == 1


def test_on_the_current_stream():
    launch, stream = Launches(_multiplied), torch.cuda.Stream()
    source, out = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    constants = {"WIDE": 64, "ADDED": 1, "num_warps": 2}
    launch((1, 1, 1), (source, out), (2.0, 64, 1), constants)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):  # captures its own stream alone
        launch((1, 1, 1), (source, out), (3.0, 64, 1), constants)
    assert (out == 3).all()
    graph.replay()
    assert (out == 4).all()
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream())
        launch((1, 1, 1), (source, out), (5.0, 64, 1), constants)
    stream.synchronize()
    assert (out == 6).all()
