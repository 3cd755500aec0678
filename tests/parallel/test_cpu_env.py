"""The settings that a command takes before it starts on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

from jaxlm import cli
from jaxlm.parallel import cpu_env


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Two cores, huge pages on request, a recent C library, no accelerator; returns the kernel's file."""
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(cpu_env, "_HUGE_PAGES", enabled)
    monkeypatch.setattr(cpu_env, "_ACCELERATORS", ())
    monkeypatch.setattr(cpu_env.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(cpu_env.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    return enabled


HUGE = "glibc.malloc.hugetlb=1"
KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
BOTH = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false", "GLIBC_TUNABLES": HUGE}


def test_settings(machine):
    assert cpu_env.settings({}) == BOTH
    assert cpu_env.settings({"JAX_PLATFORMS": "cpu"}) == BOTH
    assert cpu_env.settings({"JAX_PLATFORMS": "cuda"}) == {}
    machine.write_text("[always] madvise never\n")
    assert "GLIBC_TUNABLES" not in cpu_env.settings({})
    machine.unlink()
    assert "GLIBC_TUNABLES" not in cpu_env.settings({})


def test_memory_is_kept_for_commands_that_take_steps_on_few_cores(machine, monkeypatch):
    assert cpu_env.settings({}, keep_memory=True) == BOTH | {"GLIBC_TUNABLES": f"{KEPT}:{HUGE}"}
    machine.unlink()
    assert cpu_env.settings({}, keep_memory=True)["GLIBC_TUNABLES"] == KEPT
    monkeypatch.setattr(cpu_env.os, "sched_getaffinity", lambda _: set(range(cpu_env.FEW_CORES + 1)), raising=False)
    assert "GLIBC_TUNABLES" not in cpu_env.settings({}, keep_memory=True)


@pytest.mark.parametrize(
    ("argv", "kept"),
    [(["finetune"], True), (["bench"], True), (["pretrain"], False), (["predict"], False), ([], False)],
)
def test_which_commands_keep_memory(monkeypatch, argv, kept):
    """Those that tokenize much, or take few steps, do not."""
    asked = []
    monkeypatch.setattr(cli, "restart_with_settings", lambda *, keep_memory: asked.append(keep_memory))
    monkeypatch.setattr(cli, "main", lambda argv: 0)
    monkeypatch.setattr(sys, "argv", ["jaxlm", *argv])
    for given in (argv, None):
        with pytest.raises(SystemExit):
            cli.run(given)
    assert asked == [kept, kept]


@pytest.mark.skipif(cpu_env.platform.libc_ver()[0] != "glibc", reason="settings of the GNU C library")
def test_memory_given_back_is_handed_out_again(monkeypatch):
    """64 MiB, taken, filled and given back in turn: without the settings each turn faults in every page."""
    monkeypatch.setattr(cpu_env.os, "sched_getaffinity", lambda _: {0}, raising=False)
    program = """
import numpy as np, resource
for turn in range(12):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(2**24, 1.0, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    faults = [
        int(subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, check=True).stdout)
        for environ in (plain | cpu_env.settings({"JAX_PLATFORMS": "cpu"}, keep_memory=True), plain)
    ]
    assert faults[0] < 100 < faults[1]


@pytest.mark.parametrize("library", [("glibc", "2.17"), ("", "")])
def test_other_c_libraries_are_left_alone(machine, monkeypatch, library):
    monkeypatch.setattr(cpu_env.platform, "libc_ver", lambda: library)
    assert set(cpu_env.settings({}, keep_memory=True)) == {"JAX_CPU_ENABLE_ASYNC_DISPATCH"}


def test_an_accelerator_or_the_user_decides(machine, monkeypatch, tmp_path):
    assert cpu_env.settings({"GLIBC_TUNABLES": "", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "true"}) == {}
    monkeypatch.setattr(cpu_env, "_ACCELERATORS", (str(tmp_path),))
    assert cpu_env.settings({}) == {}
    assert cpu_env.settings({"JAX_PLATFORMS": "cpu"}) == BOTH


def test_a_script_starts_over_once_with_them(machine, monkeypatch):
    """The same command, the rest of the environment kept; and not again once they are there."""
    calls = []
    for name in BOTH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("KEPT", "as it was")
    monkeypatch.setattr(cpu_env.os, "execve", lambda *call: calls.append(call))
    cpu_env.restart_with_settings()
    [(program, arguments, environ)] = calls
    assert program == sys.executable and arguments[1:] == sys.orig_argv[1:]
    assert environ["KEPT"] == "as it was" and {name: environ[name] for name in BOTH} == BOTH
    monkeypatch.setattr(cpu_env.os, "environ", environ)
    cpu_env.restart_with_settings()
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
