"""A backend that JAX_PLATFORMS asks for and that is not there."""

from __future__ import annotations

import pytest

from jaxlm.cli import main
from jaxlm.parallel.backends import explain_absent

ERRORS = [
    ("tpu", "Unable to initialize backend 'tpu': ABORTED: Internal error.\nRun x. (set JAX_PLATFORMS='' to choose)"),
    ("cuda", "Unable to initialize backend 'cuda': Backend 'cuda' is not in the list of known backends: ['cpu']. (set "
     "JAX_PLATFORMS='' to automatically choose an available backend)"),
    ("gpu", "Unknown backend: 'gpu' requested, but no platforms that are instances of gpu are present. Platforms "
     "present are: cpu"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), ERRORS)
def test_a_backend_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, name, text):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    (tmp_path / "c.yaml").write_text("name: a\nmodel: {init: x}\ndata: {train: {path: x.csv}}\n")
    monkeypatch.setenv("JAX_PLATFORMS", name)
    monkeypatch.setattr("jaxlm.training.stages.run_training", fail)
    assert main(["finetune", "--config", str(tmp_path / "c.yaml")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: JAX_PLATFORMS={name}: the backend {name} cannot be used here (")
    assert all(words in line for words in ("Installed: cpu", "jaxlm[cuda]", "jaxlm[tpu]"))
    assert "(set JAX_PLATFORMS" not in line


def test_a_backend_without_devices(monkeypatch):
    """JAX says by an assertion alone that CUDA is installed, or known, and no GPU is here."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    code = compile("def search():\n    assert None is not None\n", "/x/jax/_src/xla_bridge.py", "exec")
    space: dict = {}
    exec(code, space)
    with pytest.raises(AssertionError) as raised:
        space["search"]()
    line = explain_absent(raised.value)
    assert line is not None and "the backend cuda cannot be used here (none of its devices is here)" in line


def test_other_errors_stay_what_they_are():
    assert explain_absent(RuntimeError("INTERNAL: x")) is None
    with pytest.raises(AssertionError) as raised:
        raise AssertionError
    assert explain_absent(raised.value) is None
