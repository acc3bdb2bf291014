"""Values for kernels that a graph holds: each tensor in memory of its own, whatever part of another it was."""

from dataclasses import field

import pytest
import torch
from torch import Tensor

import maskloom as loom
from maskloom.core.values import numbers_as_tensors, with_tensors_in_memory
from maskloom.masks import mask_dataclass

TABLE = torch.arange(24).view(4, 6)
PARTS = {
    "whole": lambda table: table,
    "a column": lambda table: table[:, 2],
    "later rows": lambda table: table[1:],
    "turned": lambda table: table.T,
    "for all": lambda table: table[2].expand(3, 6),
    "one entry": lambda table: table[3, 4:5],
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16])
def test_each_tensor_is_a_whole_one_of_its_own(name, dtype):
    """As a part of another Inductor takes a view by strides to begin where that other one begins."""
    part = PARTS[name](TABLE.to(dtype))
    own = with_tensors_in_memory(part)
    assert torch.equal(own, part) and own.dtype == dtype
    assert own.storage_offset() == 0 and own.untyped_storage().nbytes() == own.numel() * own.itemsize
    assert own.untyped_storage().data_ptr() != part.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", PARTS)
def test_in_a_graph_of_inductor(name):
    torch._dynamo.reset()
    found = torch.compile(lambda table: with_tensors_in_memory(PARTS[name](table * 2)) + 1, fullgraph=True)(TABLE)
    assert torch.equal(found, PARTS[name](TABLE * 2) + 1)


def test_the_tensors_of_a_mask():
    mask = loom.causal & (loom.lengths(TABLE[:, 2]) | loom.prefix(TABLE[1:, 3]))
    made = with_tensors_in_memory(mask)
    assert made == mask and repr(made) == repr(mask)
    assert with_tensors_in_memory(loom.causal) is loom.causal
    for other in (torch.tensor(3), torch.zeros(1 << 23, dtype=torch.bool)):
        assert with_tensors_in_memory(other) is other


@mask_dataclass
class ByName(loom.Mask):
    lens: Tensor = field(kw_only=True)
    more: int | Tensor = field(default=0, kw_only=True)

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < self.lens[b] + self.more


@mask_dataclass
class Derived(loom.Mask):
    lens: Tensor
    more: int | Tensor = 0
    ends: Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "ends", self.lens + 1)

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < self.ends[b] + self.more


OF_USERS = {
    "by name": lambda lens, more: ByName(lens=lens, more=more),
    "derived": lambda lens, more: Derived(lens, more),
}


@pytest.mark.parametrize(
    "change", [with_tensors_in_memory, lambda mask: numbers_as_tensors(mask, "cpu")], ids=["memory", "numbers"]
)
@pytest.mark.parametrize("name", OF_USERS)
def test_fields_that_a_users_class_takes_by_name_or_makes_itself(name, change):
    torch._dynamo.reset()
    lens, table = TABLE[:, 1] // 4, torch.arange(9)

    def seen(lens, more):
        mask = change(loom.causal & OF_USERS[name](lens, more))
        return mask(torch.arange(4)[:, None], table[:1], table[-1:], table)

    compiled = torch.compile(seen, backend="eager", fullgraph=True, dynamic=True)
    for more in (2, 3, 5):
        assert torch.equal(compiled(lens, more), seen(lens, more))
        assert torch.equal(
            seen(lens, more), (loom.causal & OF_USERS[name](lens, more))(torch.arange(4)[:, None], 0, 8, table)
        )
