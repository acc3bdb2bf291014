"""Tests that need a CUDA device; without one nothing here is collected. Run them with ``make gpu``."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
