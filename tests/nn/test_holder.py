"""Holder: a mask or score_mod goes where its module goes, and is saved, copied and compiled with it."""

import copy
import pickle

import pytest
import torch
from torch import nn

import maskloom as loom

B, H, L, D = 2, 3, 5, 8


class Layer(nn.Module):
    """Attention under a mask and two score mods that the module holds."""

    def __init__(self, **how):
        super().__init__()
        self.linear = nn.Linear(D, D)
        self.mask = loom.nn.Holder(loom.causal & loom.lengths(torch.tensor([5, 3])) & loom.window(back=2), **how)
        self.bias = loom.nn.Holder(loom.scores.relative_bias(nn.Parameter(torch.zeros(H, 7))))
        self.slopes = loom.nn.Holder(loom.scores.alibi(H))

    def forward(self, x):
        x = self.linear(x)
        return loom.attend(x, x, x, self.mask(), score_mod=loom.scores.compose(self.bias(), self.slopes()))


@pytest.fixture
def layer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layer()


def inputs():
    return torch.randn(B, H, L, D, generator=torch.Generator().manual_seed(1))


def devices(held):
    from maskloom.core import captures

    return {tensor.device.type for tensor in captures.tensors(held)}


def test_tensors_are_buffers_and_what_learns_is_a_parameter(layer):
    assert {name for name, _ in layer.named_buffers()} == {"mask.tensor0", "slopes.tensor0"}
    assert {name for name, _ in layer.named_parameters()} == {"linear.weight", "linear.bias", "bias.tensor0"}
    layer(inputs()).sum().backward()
    assert layer.bias.tensor0.grad.any()
    assert layer.mask() == loom.causal & loom.lengths([5, 3]) & loom.window(back=2)


def test_they_move_with_the_module(layer):
    before = layer.mask()
    assert layer.mask() is before  # what is kept with it stays
    layer.to("meta")
    assert layer.mask() is not before
    assert devices(layer.mask()) == devices(layer.slopes()) == devices(layer.bias()) == {"meta"}
    assert devices(before) == {"cpu"}


def test_dtypes_are_those_of_parameters_alone(layer):
    expected = layer(inputs())
    layer.half()
    assert layer.bias().table.dtype == torch.float16
    assert layer.slopes().slopes.dtype == torch.float32
    assert layer.mask().parts[1].q_lens.dtype == torch.int64
    torch.testing.assert_close(layer(inputs().half()).float(), expected, rtol=0, atol=0.01)


def test_copies_and_pickles(layer):
    expected = layer(inputs())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(inputs()), expected)
        assert twin.bias().table is twin.bias.tensor0
        assert twin.mask().parts[1].q_lens is twin.mask.tensor0


def test_state_dicts():
    plain, persistent = Layer(), Layer(persistent=True)
    assert set(persistent.state_dict()) - set(plain.state_dict()) == {"mask.tensor0"}
    other = {**persistent.state_dict(), "mask.tensor0": torch.tensor([2, 4])}
    for assign in (False, True):
        loaded = Layer(persistent=True)
        loaded(inputs())
        loaded.load_state_dict(other, assign=assign)
        assert loaded.mask() == loom.causal & loom.lengths([2, 4]) & loom.window(back=2)
        mask = loom.causal & loom.lengths([2, 4]) & loom.window(back=2)
        x = loaded.linear(inputs())
        bent = loom.scores.compose(loaded.bias(), loom.scores.alibi(H))
        torch.testing.assert_close(loaded(inputs()), loom.attend(x, x, x, mask, score_mod=bent))


def test_a_module_that_is_made_on_the_meta_device(layer):
    with torch.device("meta"):
        made = Layer(persistent=True)
        made.mask = loom.nn.Holder(loom.causal & loom.lengths(torch.tensor([5, 3])), persistent=True)
    made.slopes = loom.nn.Holder(loom.scores.alibi(H))
    source = Layer(persistent=True)
    made.to_empty(device="cpu").load_state_dict(source.state_dict())
    assert made.mask() == loom.causal & loom.lengths([5, 3])


def test_under_a_full_graph_compile(layer):
    torch._dynamo.reset()
    expected = layer(inputs())
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs()), expected)
    layer.double().float()
    torch.testing.assert_close(compiled(inputs()), expected)
    doubled = {name: 2 * parameter.detach() for name, parameter in layer.named_parameters()}
    other = torch.func.functional_call(layer, doubled, (inputs(),))
    call = torch.compile(lambda p, x: torch.func.functional_call(layer, p, (x,)), backend="eager", fullgraph=True)
    torch.testing.assert_close(call(doubled, inputs()), other)
    torch.testing.assert_close(layer(inputs()), expected)


def test_parameters_that_torch_swaps_or_overwrites(layer):
    for switch in (
        torch.__future__.set_swap_module_params_on_conversion,
        torch.__future__.set_overwrite_module_params_on_conversion,
    ):
        switch(True)
        try:
            layer.double()
        finally:
            switch(False)
        assert layer.bias().table.dtype == torch.float64
        assert layer(inputs().double()).dtype == torch.float64
        layer.float()


def reads(lens):
    return lambda b, h, q_idx, kv_idx: kv_idx < lens[b]


def test_functions_and_block_masks():
    holder = loom.nn.Holder(reads(torch.tensor([5, 3]))).to("meta")
    assert devices(holder()) == {"meta"}
    blocks = loom.nn.Holder(loom.block_mask(loom.causal & loom.lengths([5, 3]), L, L))
    x = inputs()
    expected = loom.attend(x, x, x, loom.causal & loom.lengths([5, 3]))
    for held in (blocks, pickle.loads(pickle.dumps(blocks))):
        torch.testing.assert_close(loom.attend(x, x, x, held()), expected)
    blocks.to("meta")
    assert blocks().kv_indices.device.type == "meta"
    assert devices(blocks().mask_mod) == {"meta"}
    assert repr(blocks) == "Holder(BlockMask)"


def test_words(layer):
    x = inputs()
    learned = nn.Parameter(torch.zeros(H, 7))
    with pytest.raises(TypeError, match="a Holder holds a mask, a score_mod or a BlockMask; got Linear"):
        loom.nn.Holder(layer.linear)
    with pytest.raises(TypeError, match="got int"):
        loom.nn.Holder(3)
    with pytest.raises(
        ValueError, match=r"a tensor of shape \(3, 7\) was computed from it: make this mask or score_mod in for"
    ):
        loom.nn.Holder(loom.scores.relative_bias(2 * learned))
    for call in (lambda: loom.attend(x, x, x, layer.mask), lambda: loom.attend(x, x, x, score_mod=layer.bias)):
        with pytest.raises(TypeError, match=r"a Holder is no mask or score_mod: give what holder\(\) returns"):
            call()
    assert repr(layer.mask) == "Holder(causal & lengths(int64[2]) & window(back=2, ahead=0))"
    with pytest.raises(ValueError, match=r"move them with mask\.to.*maskloom\.nn\.Holder"):
        loom.attend(x, x, x, loom.lengths([5, 3]).to("meta"))
