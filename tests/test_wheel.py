"""The wheel, alone in a fresh environment outside of the clone, does what docs/guides/first_hour.md says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.first_hour import write_tables
from helpers.pages import block_run_as, commands_in
from helpers.paths import REPOSITORY

from jaxlm.config import shipped

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy: building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "clone"
    for name in ("jaxlm", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(pip, cwd=source, check=True)
    [built] = folder.glob("*.whl")
    shutil.rmtree(source)
    return built


class Installed:
    """The wheel with what it depends on, in a virtual environment of its own.

    Attributes:
      folder: an empty working directory.
    """

    def __init__(self, wheel: Path, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        self.programs, self.folder = folder / "venv/bin", folder / "work"
        self.folder.mkdir()
        ours = ("PYTHON", "VIRTUAL_ENV", "JAXLM")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment["PATH"] = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        self.run([self.programs / "pip", "install", "-q", str(wheel)])

    def run(self, command: str | list[str | Path]) -> str:
        """Runs a line of a shell, or a program with arguments; returns what it prints."""
        done = subprocess.run(
            command, shell=isinstance(command, str), cwd=self.folder, env=self.environment, text=True,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Iterator[Installed]:
    made = Installed(wheel, tmp_path_factory.mktemp("installed"))
    yield made
    shutil.rmtree(made.programs.parent)  # a gigabyte, which pytest would keep


def test_the_wheel_holds_the_shipped_configs(wheel):
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    for name in shipped.shipped_configs():
        assert f"jaxlm/configs/{name}.yaml" in names
    assert not any(name.startswith(("configs/", "tests/", "scripts/")) for name in names)


@pytest.mark.timeout(2400)
def test_the_first_hour_and_python(installed, shared_data):
    write_tables(installed.folder, shared_data)
    where = installed.run("python -c 'import jaxlm; print(jaxlm.__file__)'").strip()
    assert Path(where).is_relative_to(installed.programs.parent)
    assert "finetune/sst2" in installed.run("jaxlm init --list")
    for command in commands_in(block_run_as("first-hour").text):  # for fewer epochs; tests/test_first_hour.py has all
        printed = installed.run(f"{command} train.epochs=2" if "jaxlm finetune" in command else command)
        if "jaxlm evaluate" in command:
            assert json.loads(printed)["accuracy"] > 0.5
    assert (installed.folder / "antworten.csv").read_text(encoding="utf-8").count("\n") >= 40
    python = block_run_as("first-hour-python").text.replace("model.predict(", "print(model.predict(") + ")"
    assert "Werbung" in installed.run([installed.programs / "python", "-W", "error", "-c", python])


@pytest.mark.timeout(1200)
def test_the_quickstart(installed):
    """Its data and baselines, with a smaller model and without pretraining; .ci/run has all of it."""
    sizes = "{num_layers: 1, embed_dim: 32, num_heads: 2, mlp_dim: 64}"
    fewer = [
        "name=small",
        f"model={{family: bert, config: {sizes}, train_tokenizer: {{vocab_size: 500}}}}",
        *(f"data.{split}={{builtin: stdlib_docstrings, limit: 100}}" for split in ("validation", "test")),
        "data.max_shapes=1",
        "train.epochs=1",
        "train.scratch_baseline=false",
    ]
    command = [installed.programs / "jaxlm", "finetune", "--config", "configs/quickstart.yaml"]
    installed.run([*command, *fewer])
    assert (installed.folder / "runs/small/report.html").exists()

    # As it is: both configs are the package's own. What it says then is not waited for.
    with subprocess.Popen(
        command, cwd=installed.folder, env=installed.environment, text=True, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        process.terminate()
    for line, name in zip(said, ("quickstart.yaml", "pretrain/quickstart.yaml"), strict=True):
        found = Path(line.rstrip().rpartition(", ")[2])
        assert found.is_relative_to(installed.programs.parent) and found.as_posix().endswith(f"jaxlm/configs/{name}")
