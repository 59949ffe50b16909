"""Two CPU devices, so that every test of devices runs on any machine, and a store of programs."""

import os

import jax
import pytest

import jaxnas as nas

jax.config.update("jax_num_cpu_devices", 2)

SPACES = {
    "tiny": nas.testing.tiny_space,
    "conditional": nas.testing.conditional_space,
    "mlp": lambda: nas.spaces.mlp(
        3, depths=(1, 2, 4), widths=(8, 16), per_layer=True, optimizers=()
    ),
}


def pytest_configure(config):
    """Compiling is most of the suite's time: a second run takes programs from the first one's."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")  # JAX's files are not safe to share
    folder = config.rootpath / ".pytest_cache" / "programs" / worker
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def compilation(request):
    """Searches are compiled for much longer than they run: theirs are not optimised."""
    module = request.node.path.stem.removeprefix("test_")
    light = module in ("strategies", "bilevel", "path_sampling", *nas.strategies.ALL)
    light = light or module.startswith("one_shot")
    jax.config.update("jax_disable_most_optimizations", light)


@pytest.fixture
def key():
    """A PRNG key."""
    return jax.random.key(0)


@pytest.fixture(params=SPACES, scope="session")
def any_space(request):
    """Every space in turn."""
    return SPACES[request.param]()
