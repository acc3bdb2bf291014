"""Modules: multi-head attention, and a holder for masks."""

from maskloom.nn.holder import Holder
from maskloom.nn.multihead import MultiheadFlexAttention

__all__ = ["MultiheadFlexAttention", "Holder"]
