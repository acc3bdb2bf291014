"""Fixed seeds in CI; ``--hypothesis-profile=nightly`` for more examples."""

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck)
)
settings.register_profile("nightly", deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))
settings.load_profile("ci")

torch.set_num_threads(1)  # the tests share their cores with other workers
