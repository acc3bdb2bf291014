"""Every mask through every law."""

import pytest

from maskloom.testing import check_mask
from tests.all_masks import ALL_MASKS, KV_LEN, Q_LEN


@pytest.mark.parametrize("name", ALL_MASKS)
def test_every_law(name):
    check_mask(ALL_MASKS[name](), q_len=Q_LEN, kv_len=KV_LEN)
