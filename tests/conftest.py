"""Settings and fixtures of all tests; before any of them touches a device."""

import jax
import pytest

from jaxnas import strategies
from jaxnas.testing import conditional_space, tiny_space

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

SPACES = {"tiny": tiny_space(), "conditional": conditional_space()}


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def space(request):
    """Every space that the contract tests cross with every strategy."""
    return request.param


@pytest.fixture(params=sorted(strategies.ALL))
def strategy_name(request):
    return request.param


@pytest.fixture(scope="module")
def quick_compile():
    """Halves the time of tests that compile much and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
