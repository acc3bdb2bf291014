"""Wrong gradients that are reported upstream, on the CPU."""

import pytest

from tests.reported import REPORTED, check_report


@pytest.mark.parametrize("backend", ["sdpa", "sliced", "reference"])
@pytest.mark.parametrize("number", REPORTED)
def test_reported_gradients(number, backend):
    check_report(number, backend, "cpu")
