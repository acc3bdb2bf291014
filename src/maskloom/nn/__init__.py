"""Modules: multi-head attention, torch's own run by maskloom, and a holder for masks."""

from maskloom.nn.cache import KVCache
from maskloom.nn.convert.attention import MultiheadAttention, from_torch, replace_attention
from maskloom.nn.holder import Holder
from maskloom.nn.multihead import MultiheadFlexAttention
from maskloom.nn.rotary import Rotary

__all__ = [
    "MultiheadFlexAttention",
    "Rotary",
    "KVCache",
    "Holder",
    "MultiheadAttention",
    "from_torch",
    "replace_attention",
]
