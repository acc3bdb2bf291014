"""Modules: multi-head attention, and a holder for masks."""

from maskloom.nn.cache import KVCache
from maskloom.nn.holder import Holder
from maskloom.nn.multihead import MultiheadFlexAttention
from maskloom.nn.rotary import Rotary

__all__ = ["MultiheadFlexAttention", "Rotary", "KVCache", "Holder"]
