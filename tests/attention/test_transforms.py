"""`attend` and the module under torch.vmap, beside DTensors, and after torch has swapped tensors."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends import choose, flash
from maskloom.attention.request import Request

B, H, L, D = 2, 3, 5, 8
LENS = torch.tensor([[5, 3], [2, 4], [1, 0]])
PADS = torch.rand(3, B, L, generator=torch.Generator().manual_seed(0)) < 0.3


def inputs(*leading):
    return torch.randn(3, *leading, B, H, L, D, generator=torch.Generator().manual_seed(1)).unbind(0)


q, k, v = inputs()
CALLS = {
    "lengths": (LENS, lambda lens, **how: loom.attend(q, k, v, loom.causal & loom.lengths(lens), **how)),
    "clean": (LENS, lambda lens, **how: loom.attend(q, k, v, loom.lengths(lens), clean_padding=True, **how)),
    "padding": (PADS, lambda pads, **how: loom.attend(q, k, v, loom.padding(pads), **how)),
    "key padding": (PADS, lambda pads, **how: loom.attend(q, k, v, loom.key_padding(pads) | loom.causal, **how)),
    "documents": (PADS.long(), lambda ids, **how: loom.attend(q, k, v, loom.documents(ids), **how)),
    "function": (LENS, lambda lens, **how: loom.attend(q, k, v, lambda b, h, i, j: j < lens[b], **how)),
    "offset": (LENS[:, 0], lambda at, **how: loom.attend(q, k, v, loom.causal, q_offset=at, **how)),
    "offsets": (LENS, lambda at, **how: loom.attend(q, k, v, loom.causal, q_offset=at, **how)),
    "queries": (inputs(7)[0], lambda q, **how: loom.attend(q, k, v, loom.lengths(LENS[0]), **how)),
    "block mask": (
        inputs(7)[0],
        lambda q, **how: loom.attend(q, k, v, loom.block_mask(loom.lengths(LENS[0]), L, L), **how),
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_vmap_gives_what_each_example_gives(name, backend):
    examples, call = CALLS[name]
    expected = torch.stack([call(example, backend=backend) for example in examples])
    torch.testing.assert_close(torch.vmap(lambda one: call(one, backend=backend))(examples), expected)


def test_vmap_over_all_at_once_and_gradients_of_each_example():
    module = loom.MultiheadFlexAttention(7, 6, H)
    x = torch.randn(3, B, L, 7, generator=torch.Generator().manual_seed(2))

    def loss(x, lens):
        return module(x, loom.causal & loom.lengths(lens)).out.square().sum()

    found = torch.vmap(torch.func.grad(loss))(x, LENS)
    expected = torch.stack([torch.func.grad(loss)(one, lens) for one, lens in zip(x, LENS, strict=True)])
    torch.testing.assert_close(found, expected)


def test_compiled_kernels_are_refused_there(monkeypatch):
    tensors = [torch.empty(2, 3, 150, 64, device="meta", dtype=torch.bfloat16) for _ in range(3)]
    request = Request(*tensors, loom.window(back=3))
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    monkeypatch.setattr(flash, "_HAS_FLASH", True)
    monkeypatch.setattr(choose, "LITTLE", 0)
    found = {}

    def look(x):
        found["auto"] = choose.choose(request, "auto").backend.name
        for backend in ("flash", "varlen", "triton"):
            with pytest.raises(
                ValueError, match=rf"'{backend}' cannot do this: torch.func .* cannot transform its kernel"
            ):
                choose.choose(request, backend)
        return x

    torch.vmap(look)(torch.ones(2))
    assert found["auto"] == "reference"  # torch cannot batch its own attention on a GPU
    assert choose.choose(request, "auto").backend.name == "flash"


def test_swapped_tensors():
    lens, other = torch.tensor([5, 3]), torch.tensor([1, 2])
    mask = loom.causal & loom.lengths(lens)
    before = loom.attend(q, k, v, mask)
    torch.utils.swap_tensors(lens, other)
    assert torch.equal(loom.attend(q, k, v, mask), loom.attend(q, k, v, loom.causal & loom.lengths([1, 2])))
    torch.utils.swap_tensors(lens, other)
    assert torch.equal(loom.attend(q, k, v, mask), before)


def test_swapped_parameters():
    module = loom.MultiheadFlexAttention(7, 6, H)
    x = torch.randn(B, L, 7)
    before = module(x, loom.causal).out.detach()
    for parameter in module.parameters():
        torch.utils.swap_tensors(parameter, torch.nn.Parameter(2 * parameter.detach()))
    assert not torch.allclose(module(x, loom.causal).out, before)


@pytest.fixture
def distributed():
    """A function that makes DTensors, of a group of two processes that are not there."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    mesh = init_device_mesh("cpu", (2,))
    yield lambda tensor: distribute_tensor(tensor, mesh, [Replicate()])
    destroy_process_group()


def test_dtensors(distributed):
    lens, table = distributed(LENS[0]), distributed(torch.zeros(H, 7))
    for call, words in (
        (lambda: loom.attend(distributed(q), k, v), r"query is a DTensor; give .*query\.to_local\(\).*h_offset="),
        (lambda: loom.attend(q, k, distributed(v)), "value is a DTensor"),
        (lambda: loom.attend(q, k, v, loom.lengths(lens)), r"the mask holds a DTensor; .*tensor\.full_tensor\(\)"),
        (lambda: loom.block_mask(loom.lengths(lens), L, L), "the mask holds a DTensor"),
        (lambda: loom.attend(q, k, v, loom.causal, q_offset=lens), "the mask holds a DTensor"),
        (lambda: loom.attend(q, k, v, score_mod=loom.scores.relative_bias(table)), "the score_mod holds a DTensor"),
        (lambda: loom.attend(q, k, v, sinks=distributed(torch.zeros(H))), "sinks is a DTensor"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    local = loom.attend(distributed(q).to_local(), k, v, loom.lengths(lens.to_local()))
    assert torch.equal(local, loom.attend(q, k, v, loom.lengths(LENS[0])))
