"""Double precision for tests of exact expectations."""

from collections.abc import Iterator

import pytest

from ppl_lvm.testing.expectations import double_precision


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are float64, so that exact sums agree to 1e-9."""
    with double_precision():
        yield
