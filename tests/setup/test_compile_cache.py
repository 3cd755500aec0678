"""Compiled programs are kept on disk by default, found by the next process, and a killed writer does no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers.finetuning_runs import write_config
from jax.experimental.compilation_cache import compilation_cache

from jaxlm.setup.compile_cache import LIMIT, use_compile_cache

SCRIPT = """
import sys, jax
from jax._src import monitoring
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if "cache_hits" in name else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from jaxlm.cli import main
status = main(sys.argv[1:])
print(status, len(hits))
"""


def finetune(config, home, *overrides: str, **environ: str) -> tuple[int, int, str]:
    """Exit status, programs found in the cache, and what was said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    environ = {**kept, "XDG_CACHE_HOME": str(home), "XLA_FLAGS": "--xla_backend_optimization_level=0", **environ}
    command = [sys.executable, "-c", SCRIPT, "finetune", "--config", str(config), *overrides]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    status, hits = done.stdout.split()[-2:]
    return int(status), int(hits), done.stderr


@pytest.mark.slow
def test_a_second_run_finds_what_the_first_compiled(tmp_path):
    config = write_config(tmp_path, train={"epochs": 1})
    home = tmp_path / "home"
    status, hits, errors = finetune(config, home)
    assert (status, hits) == (0, 0), errors
    [folder] = (home / "jaxlm/xla").iterdir()
    assert folder.name.startswith("cpu-") and len(list(folder.glob("*-cache"))) > 3
    status, hits, errors = finetune(config, home, "name=again")
    assert status == 0 and hits > 3 and "cache" not in errors, errors
    first, second = (tmp_path / "runs" / name / "model/model.safetensors" for name in ("tiny", "again"))
    assert first.read_bytes() == second.read_bytes()
    status, hits, _ = finetune(config, tmp_path / "other", "name=third", "logging.compile_cache=null")
    assert (status, hits) == (0, 0) and not (tmp_path / "other").exists()


@pytest.fixture
def no_cache():
    names = "jax_compilation_cache_dir", "jax_compilation_cache_max_size"
    before = [getattr(jax.config, name) for name in names]
    jax.config.update(names[0], None)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_killed_writer_leaves_nothing(tmp_path, no_cache):
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (tmp_path / name).write_bytes(b"12345678")
    use_compile_cache(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} - {".lockfile"} == {"whole-cache", "whole-atime"}
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_compilation_cache_max_size == LIMIT


def test_a_folder_that_cannot_be_used_is_told_and_another_cache_stays(tmp_path, no_cache, caplog):
    (tmp_path / "file").write_text("")
    use_compile_cache(str(tmp_path / "file"))
    assert jax.config.jax_compilation_cache_dir is None and "logging.compile_cache" in caplog.text
    use_compile_cache(None)
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    use_compile_cache(str(tmp_path / "ours"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs") and not (tmp_path / "ours").exists()


def test_a_user_without_a_home_has_none(no_cache, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    use_compile_cache("auto")
    assert jax.config.jax_compilation_cache_dir is None
