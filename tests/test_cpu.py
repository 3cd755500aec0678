"""The settings that a command takes before it starts on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import cpu

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with huge pages on request, a recent C library and no accelerator; returns the kernel's file."""
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(cpu, "_HUGE_PAGES", enabled)
    monkeypatch.setattr(cpu, "_ACCELERATORS", ())
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return enabled


HEAP = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
PLAIN = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
BOTH = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false", "GLIBC_TUNABLES": f"{HEAP}:glibc.malloc.hugetlb=1"}


def test_settings(machine, monkeypatch):
    assert cpu.settings({}) == BOTH
    assert cpu.settings({"JAX_PLATFORMS": "cpu"}) == BOTH
    assert cpu.settings({"JAX_PLATFORMS": "cuda"}) == {}
    machine.write_text("[always] madvise never\n")
    assert cpu.settings({})["GLIBC_TUNABLES"] == HEAP
    machine.unlink()
    assert cpu.settings({})["GLIBC_TUNABLES"] == HEAP
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("glibc", "2.31"))
    assert cpu.settings({})["GLIBC_TUNABLES"] == HEAP


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults of the GNU C library")
@pytest.mark.skipif(not cpu.settings({"JAX_PLATFORMS": "cpu"}).get("GLIBC_TUNABLES"), reason="needs the GNU C library")
def test_memory_given_back_is_handed_out_again():
    """64 MiB, taken, filled and given back in turn: without the settings each turn faults in every page."""
    program = """
import numpy as np, resource
for turn in range(12):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(2**24, 1.0, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = [
        int(subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, check=True).stdout)
        for environ in ({**PLAIN, **cpu.settings({"JAX_PLATFORMS": "cpu"})}, PLAIN)
    ]
    assert faults[0] < 100 < faults[1]


@pytest.mark.parametrize("library", [("glibc", "2.17"), ("", "")])
def test_other_c_libraries_are_left_alone(machine, monkeypatch, library):
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: library)
    assert set(cpu.settings({})) == {"JAX_CPU_ENABLE_ASYNC_DISPATCH"}


def test_an_accelerator_or_the_user_decides(machine, monkeypatch, tmp_path):
    assert cpu.settings({"GLIBC_TUNABLES": "", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "true"}) == {}
    monkeypatch.setattr(cpu, "_ACCELERATORS", (str(tmp_path),))
    assert cpu.settings({}) == {}
    assert cpu.settings({"JAX_PLATFORMS": "cpu"}) == BOTH


def test_a_script_starts_over_once_with_them(machine, monkeypatch):
    """The same command, the rest of the environment kept; and not again once they are there."""
    calls = []
    for name in BOTH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("KEPT", "as it was")
    monkeypatch.setattr(cpu.os, "execve", lambda *call: calls.append(call))
    cpu.restart_with_settings()
    [(program, arguments, environ)] = calls
    assert program == sys.executable and arguments[1:] == sys.orig_argv[1:]
    assert environ["KEPT"] == "as it was" and {name: environ[name] for name in BOTH} == BOTH
    monkeypatch.setattr(cpu.os, "environ", environ)
    cpu.restart_with_settings()
    assert len(calls) == 1


def test_commands_survive_the_restart():
    """Exit status, arguments and output are those of the command."""
    environ = {name: value for name, value in os.environ.items() if name not in BOTH}
    for command in (["scripts/convert.py"], ["-m", "jaxlm", "convert"]):
        done = subprocess.run(
            [sys.executable, *command, "inspect", "no such directory"],
            cwd=REPOSITORY, env={**environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2 and "no such directory" in done.stderr
