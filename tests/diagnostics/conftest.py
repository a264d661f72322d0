"""Fixtures of the linear-Gaussian pair."""

from collections.abc import Callable

import pytest
from gaussian_pairs import ExactGuide, LinearGaussian


@pytest.fixture
def linear() -> LinearGaussian:
    return LinearGaussian()


@pytest.fixture
def exact_guide() -> Callable[..., ExactGuide]:
    return ExactGuide
