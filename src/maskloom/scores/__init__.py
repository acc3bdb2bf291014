"""Score mods: functions that change a score before the softmax."""

from maskloom.scores.alibi import alibi
from maskloom.scores.compose import compose
from maskloom.scores.relative_bias import relative_bias, t5_buckets
from maskloom.scores.shift import shifted_score
from maskloom.scores.softcap import softcap

__all__ = ["alibi", "relative_bias", "t5_buckets", "softcap", "compose", "shifted_score"]
