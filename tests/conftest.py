"""Strictness for every test: x64 on request, no silent broadcasting, eight devices."""

import gc
import os
from pathlib import Path

import jax
import pytest

# Traces are many objects that stay: looking for rubbish in them takes a tenth of all.
gc.set_threshold(200_000, 50, 50)
# Before the first computation: sharding is tested without eight real devices.
jax.config.update("jax_num_cpu_devices", 8)
# Ranks are changed on purpose or not at all.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of what the tests do; a second run finds it done.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = Path(__file__).parents[1] / ".cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture
def quick():
    """Compiles the quick way: for networks and loops, whose speed is not asked for."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64(quick):
    """Runs the test with 64-bit types; everywhere else they are off.

    They ask whether formulas are right, single precision whether what users run is.
    """
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def forget():
    """Programs of one module are of no use to the next: they would take gigabytes."""
    yield
    jax.clear_caches()


def pytest_runtest_setup(item):
    """Skips tests for a GPU where there is none."""
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU")
