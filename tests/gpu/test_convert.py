"""nn.MultiheadAttention run by maskloom on a GPU: the kernels that it chooses, against torch's own in float64."""

import copy

import pytest
import torch
from torch import nn

import maskloom as loom

B, L, S, H, D = 2, 300, 421, 4, 64
E = H * D


def sample(*shape, seed=0):
    return torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))


def masks():
    may = sample(B * H, L, S, seed=1) > 0.5
    may[..., 0] = True
    pads = torch.arange(S, device="cuda") >= torch.tensor([250, 400], device="cuda")[:, None]
    added = sample(L, S, seed=2).masked_fill(~may[0], -torch.inf)
    causal = torch.ones(L, S, dtype=torch.bool, device="cuda").triu(1)
    return {
        "padding": {"key_padding_mask": pads},
        "bool": {"attn_mask": ~may[0], "key_padding_mask": pads},
        "of each head": {"attn_mask": ~may},
        "float": {
            "attn_mask": added,
            "key_padding_mask": torch.zeros(B, S, device="cuda").masked_fill(pads, -torch.inf),
        },
        "hint": {"attn_mask": causal, "is_causal": True},
    }


def outcome(module, dtype, call, need_weights):
    module = module.to(dtype)
    module.zero_grad()
    leaves = [
        sample(*shape, E, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate([(B, L), (B, S), (B, S)])
    ]
    learned = {name: mask.to(dtype).requires_grad_() if mask.is_floating_point() else mask
               for name, mask in call.items() if isinstance(mask, torch.Tensor)}  # fmt: skip
    out, weights = module(*leaves, **(call | learned), need_weights=need_weights)
    loss = (out * sample(*out.shape, seed=5).to(dtype)).sum()
    if weights is not None:
        loss = loss + weights.square().sum()
    loss.backward()
    tensors = [*leaves, *(mask for mask in learned.values() if mask.is_floating_point()), *module.parameters()]
    return [out, *([weights] if need_weights else []), *(tensor.grad for tensor in tensors)]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", masks())
def test_it_is_torchs_own(name, dtype, need_weights):
    theirs = nn.MultiheadAttention(E, H, batch_first=True, device="cuda")
    ours = loom.nn.from_torch(theirs)
    exact = outcome(copy.deepcopy(theirs), torch.float64, masks()[name], need_weights)
    plain = outcome(copy.deepcopy(theirs), dtype, masks()[name], need_weights)
    for found, beside, true in zip(outcome(ours, dtype, masks()[name], need_weights), plain, exact, strict=True):
        error, usual = ((one.double() - true).norm() / true.norm() for one in (found, beside))
        assert error <= 2 * usual + 4 * torch.finfo(dtype).eps


@pytest.mark.filterwarnings("ignore:.*nested", "ignore:Support for mismatched")
@pytest.mark.parametrize("with_mask", [False, True])
def test_an_encoder_in_training_and_inference(with_mask):
    layer = nn.TransformerEncoderLayer(E, H, 2 * E, dropout=0.0, batch_first=True, device="cuda")
    theirs = nn.TransformerEncoder(layer, 2)
    ours = loom.nn.replace_attention(copy.deepcopy(theirs))
    x, pads = sample(B, L, E), torch.arange(L, device="cuda") >= torch.tensor([123, 300], device="cuda")[:, None]
    call = {"src_key_padding_mask": pads}
    if with_mask:
        call |= {"mask": nn.Transformer.generate_square_subsequent_mask(L, device="cuda"), "is_causal": True}
    x[pads] = torch.nan
    gradients = []
    for model, filling in ((theirs, 0.0), (ours, 0.0)):
        out = model(x.masked_fill(pads[..., None], filling), **call)
        out[~pads].square().sum().backward()
        gradients.append([out[~pads], *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=2e-2)
    theirs.eval(), ours.eval()
    with torch.no_grad():
        found = ours(x, **call)[~pads]  # NaN in padding stays there
        torch.testing.assert_close(found, theirs(x.nan_to_num(0.0), **call)[~pads], rtol=2e-2, atol=2e-2)


def test_dropout_drops_probabilities():
    ours = loom.nn.MultiheadAttention(E, H, dropout=0.5, batch_first=True, device="cuda")
    x = sample(1, 32, E).expand(500, -1, -1)
    out = ours(x, x, x, need_weights=False)[0]
    expected = ours.eval()(x[:1], x[:1], x[:1])[0][0]
    assert ((out.mean(0) - expected).abs() / (out.std(0) / 500**0.5)).max() < 6
