"""Digests of a checkpoint are made by the process that wrote a file; the first reads what is nobody's, once."""

from __future__ import annotations

import concurrent.futures
import json

import jax
import orbax.checkpoint as ocp
import pytest

from jaxlm.training import digests, manifest


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, in order."""
    read: list[str] = []

    def sha256(path):
        read.append(path.name)
        return f"digest of {path.name}"

    monkeypatch.setattr(digests, "sha256", sha256)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    return read


def write_step(folder, item):
    for name in ("ocdbt.process_0/d/zero", "ocdbt.process_0/manifest", "ocdbt.process_1/d/one", "d/merged"):
        path = folder / item / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_each_process_reads_what_it_wrote_and_the_first_the_rest(tmp_path, reads):
    item = tmp_path / f"default{ocp.utils.TMP_DIR_SUFFIX}"
    write_step(tmp_path, item.name)
    done = concurrent.futures.Future()
    done.set_result(None)
    for process in (0, 1):
        digests._Digesting([done], item, process).result(timeout=5)
    assert sorted(reads) == ["manifest", "one", "zero"]
    item.rename(tmp_path / "default")  # Orbax's commit of the item
    reads.clear()
    manifest.write(tmp_path, {"step": 3})
    assert reads == ["merged"]
    written = manifest.read(tmp_path)["files"]
    assert written["default/ocdbt.process_1/d/one"] == [21, "digest of one"] and len(written) == 4
    assert not list(tmp_path.glob("digests*"))
    assert manifest.problem(tmp_path) is None


def test_a_process_that_noted_nothing_fails_the_save(tmp_path, reads):
    write_step(tmp_path, "default")
    (tmp_path / "digests.0.json").write_text(json.dumps({}))
    with pytest.raises(OSError, match=r"digests\.1\.json"):
        manifest.write(tmp_path, {})
