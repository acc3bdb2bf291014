"""One sequence over several GPUs: context parallel for any mask, on torch.distributed.

`plan` decides from the tiles of a mask how the ranks of a DeviceMesh share one sequence; the `Plan` that it returns shards
tensors, and attends.
"""

from maskloom.distributed.planning import plan
from maskloom.distributed.sequence_plan import Plan

__all__ = ["plan", "Plan"]
