"""Every test: eight simulated CPU devices, JAX's strictest promotion, cached compiles.

The settings come before anything initialises JAX's backend.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

ROOT = Path(__file__).parents[1]
COMPILE_CACHE = ROOT / ".cache" / "jax"
# optax and the norms of nnx do not survive strict dtype promotion; these rooms do.
STRICT_DTYPES = [ROOT / "tests/ssm/ops", ROOT / "tests/pallas_kernels"]
# A test's time is the compiler's here, on programs that run once.
QUICK_COMPILES = [ROOT / "tests/pallas_kernels", ROOT / "tests/ssm"]

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(COMPILE_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def _strict_dtypes(request: pytest.FixtureRequest) -> Iterator[None]:
    strict = any(request.path.is_relative_to(room) for room in STRICT_DTYPES)
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@pytest.fixture(autouse=True)
def _quick_compiles(request: pytest.FixtureRequest) -> Iterator[None]:
    quick = any(request.path.is_relative_to(room) for room in QUICK_COMPILES)
    quick &= "memory" not in request.node.nodeid  # those read the programs
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Of other files: gigabytes by the end."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Turn float64 on for one test: `@pytest.mark.usefixtures("x64")`."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def subprocess_env() -> dict[str, str]:
    """Environment of a command under test: one CPU device, cached compiles."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(COMPILE_CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
