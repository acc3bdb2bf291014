"""torch.export of what is made here: batch and lengths dynamic, run at other sizes than it was exported at."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.masks.patterns.position import global_tokens
from maskloom.masks.patterns.relative import causal_lower_right
from tests.catalog import EVERY

B, H, D, L = 3, 2, 8, 11
MODES = {"strict": True, "not strict": False}
BATCH, LENGTH = Dim("batch", min=2, max=13), Dim("length", min=2, max=97)
SHAPES = ({0: BATCH, 2: LENGTH}, {0: BATCH}, {0: BATCH, 1: LENGTH}, {0: BATCH, 1: LENGTH})
OTHER_SIZES = ((5, 17), (2, 2), (13, 64))


def inputs(batch, length):
    """Queries, lengths, padding and ids of documents."""
    generator = torch.Generator().manual_seed(length)
    lens = torch.randint(1, length + 1, (batch,), generator=generator)
    ids = torch.randint(-1, 3, (batch, length), generator=generator).sort(-1).values
    query = torch.randn(batch, H, length, D, generator=generator)
    return query, lens, torch.rand(batch, length, generator=generator) < 0.3, ids


class Calls(nn.Module):
    """What each of some functions makes of the inputs."""

    def __init__(self, *functions):
        super().__init__()
        self.functions = functions

    def forward(self, query, lens, pads, ids):
        return [function(query, lens, pads, ids) for function in self.functions]


def exported(module, strict):
    return export(module, inputs(B, L), dynamic_shapes=SHAPES, strict=MODES[strict])


def is_same_at_other_sizes(module, *programs):
    for batch, length in OTHER_SIZES:
        given = inputs(batch, length)
        for program in programs:
            torch.testing.assert_close(program.module()(*given), module(*given))


MADE = {
    "lengths": lambda lens, pads, ids: loom.causal & loom.lengths(lens),
    "real": lambda lens, pads, ids: loom.real(~pads),
    "real of ones": lambda lens, pads, ids: loom.causal & loom.real((~pads).long()),
    "padding": lambda lens, pads, ids: loom.window(back=3) & loom.padding(pads),
    "key padding": lambda lens, pads, ids: loom.key_padding(pads),
    "documents": lambda lens, pads, ids: loom.causal & loom.documents(ids),
    "position ids": lambda lens, pads, ids: loom.documents(position_ids=ids),
    "within": lambda lens, pads, ids: loom.masks.within(loom.documents(ids), loom.causal | loom.prefix(2)),
    "prefix": lambda lens, pads, ids: loom.causal | loom.prefix(lens),
    "sinks": lambda lens, pads, ids: (loom.window(back=2) | loom.sinks(3)) & loom.lengths(lens),
    "not": lambda lens, pads, ids: loom.everything ^ loom.padding(pads),
    "shifted": lambda lens, pads, ids: loom.masks.shifted(loom.causal, q_offset=lens),
    "global": lambda lens, pads, ids: loom.window(back=1) | global_tokens(pads),
    "int of a length": lambda lens, pads, ids: loom.window(back=pads.shape[1] // 2),
    "lower right": lambda lens, pads, ids: causal_lower_right(pads.shape[1], pads.shape[1] + 1),
    "per head": lambda lens, pads, ids: loom.masks.per_head([loom.causal, loom.prefix(lens)]),
}


@pytest.mark.parametrize("strict", MODES)
def test_masks_made_of_inputs(strict):
    module = Calls(*(lambda q, *given, make=make: loom.attend(q, q, q, make(*given)) for make in MADE.values()))
    is_same_at_other_sizes(module, exported(module, strict))


def of_inputs(lens):
    def mask_mod(b, h, q_idx, kv_idx):
        return (kv_idx < lens[b]) & (q_idx >= kv_idx)

    return mask_mod


def sums(query, lens):
    out, aux = loom.attend(
        query, query, query, loom.lengths(lens), return_aux=AuxRequest(lse=True), sinks=torch.zeros(H)
    )
    return out, aux.lse


TABLE = torch.randn(H, 9, generator=torch.Generator().manual_seed(0))
CALLS = {
    "plain function": lambda q, lens, pads, ids: loom.attend(q, q, q, of_inputs(lens)),
    "plain function inside": lambda q, lens, pads, ids: loom.attend(q, q, q, loom.window(back=2) | of_inputs(lens)),
    "alibi": lambda q, lens, pads, ids: loom.attend(
        q, q, q, loom.causal & loom.lengths(lens), score_mod=loom.scores.alibi(H)
    ),
    "relative bias": lambda q, lens, pads, ids: loom.attend(q, q, q, score_mod=loom.scores.relative_bias(TABLE)),
    "softcap": lambda q, lens, pads, ids: loom.attend(
        q, q, q, loom.causal, score_mod=loom.scores.softcap(5.0), q_offset=2
    ),
    "sums": lambda q, lens, pads, ids: sums(q, lens),
    "clean": lambda q, lens, pads, ids: loom.attend(q, q, q, loom.padding(pads), clean_padding=True),
    "offset": lambda q, lens, pads, ids: loom.attend(q, q, q, loom.causal, q_offset=q.shape[2]),
    "offset of rows": lambda q, lens, pads, ids: loom.attend(q, q, q, loom.causal, q_offset=lens),
    "grouped": lambda q, lens, pads, ids: loom.attend(q, q[:, :1], q[:, :1], loom.lengths(lens)),
}


@pytest.mark.parametrize("strict", MODES)
def test_options_of_attend(strict):
    module = Calls(*CALLS.values())
    is_same_at_other_sizes(module, exported(module, strict))


class Layer(nn.Module):
    """The module, with a mask made of an input and one that it holds."""

    def __init__(self):
        super().__init__()
        self.attention = loom.MultiheadFlexAttention(16, 16, H)
        self.mask = loom.causal & loom.window(back=5)

    def forward(self, query, lens, pads, ids):
        x = query.transpose(1, 2).flatten(2)
        one = self.attention(x, loom.causal & loom.lengths(lens))
        return one.out, self.attention(x, self.mask & loom.padding(pads), clean_padding=True).out


@pytest.mark.parametrize("strict", MODES)
def test_the_module_saved_and_decomposed(strict):
    module = Layer()
    program = exported(module, strict)
    written = io.BytesIO()
    torch.export.save(program, written)
    written.seek(0)
    is_same_at_other_sizes(module, program, torch.export.load(written), program.run_decompositions())


class CaptureSlot(nn.Module):
    """Attention under masks that a module holds."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks

    def forward(self, query, key):
        return [loom.attend(query, key, key, mask) for mask in self.masks]


def of_one_size():
    """Every mask of the catalogue that is for H heads, at most 12 together, with their Q and K."""
    found = {}
    for name, (make, *sizes) in EVERY.items():
        if "repeat_heads" not in name:
            found.setdefault(tuple(sizes), []).append(make)
    for sizes, makes in found.items():
        for first in range(0, len(makes), 12):
            yield *sizes, makes[first : first + 12]


GROUPS = list(of_one_size())


@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_every_mask_held_by_a_module(number):
    """165 masks or so; strict where the number is divisible by 4, else not, which is four times as fast."""
    q_len, kv_len, makes = GROUPS[number]
    module = CaptureSlot([make() for make in makes])
    shapes = ({2: Dim("queries", min=2, max=q_len)}, {2: Dim("keys", min=2, max=kv_len)})

    def given(queries, keys):
        return torch.randn(B, H, queries, D), torch.randn(B, H, keys, D)

    program = export(module, given(q_len - 1, kv_len - 1), dynamic_shapes=shapes, strict=number % 4 == 0)
    for sizes in ((q_len, kv_len), (3, 2)):
        qk = given(*sizes)
        torch.testing.assert_close(program.module()(*qk), module(*qk))


@pytest.mark.parametrize("strict", MODES)
def test_a_block_mask_is_for_its_lengths(strict):
    blocks = loom.block_mask(loom.causal & loom.lengths([11, 4, 2]), L, L, block_size=4)
    module = Calls(lambda q, *_: loom.attend(q, q, q, blocks))
    given = inputs(B, L)
    program = export(module, given, strict=MODES[strict])
    torch.testing.assert_close(program.module()(*given), module(*given))


@pytest.mark.parametrize("strict", MODES)
def test_a_block_mask_of_dynamic_lengths_is_refused(strict):
    def build(query, lens, pads, ids):
        mask, length = loom.causal & loom.lengths(lens), query.shape[2]
        return loom.block_mask(mask, length, length, batch=query.shape[0], heads=1, device="cpu").kv_num_blocks

    with pytest.raises(Exception, match="give attend the mask itself"):
        exported(Calls(build), strict)
