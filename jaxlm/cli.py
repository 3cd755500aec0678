"""The command line, `jaxlm COMMAND` and scripts/*.py: runs a command, of several processes too; exit statuses."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxlm import commands
from jaxlm.console import printable, setup_logging
from jaxlm.errors import Interrupted, RunFailure, UserError
from jaxlm.local_paths import check_local, expand
from jaxlm.options import read_options
from jaxlm.parallel.backends import explain_absent
from jaxlm.parallel.cluster import Cluster, detect_cluster
from jaxlm.parallel.cpu_env import restart_with_settings
from jaxlm.parallel.launch import supervise


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 1 a failure, 2 a user's mistake, 3 a saved interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = read_options(arguments)
    options.command_line = shlex.join(["jaxlm", *arguments])
    try:
        _check_paths(options)
    except UserError as error:
        return _fail("error", error, 2)
    if not hasattr(options, "coordinator"):
        setup_logging(options.verbose)
        return _run(options, options.run_command)
    try:
        cluster = detect_cluster(options.coordinator, options.num_processes, options.process_id)
    except UserError as error:
        return _fail("error", error, 2)
    if cluster is None:
        setup_logging(options.verbose)
        return _run(options, options.run_command)
    return _run_one_of_several(options, cluster)


_PATHS = (
    "back_model",
    "config",
    "data",
    "html",
    "input",
    "json",
    "model",
    "output",
    "paths",
    "plugin",
    "run",
    "space",
    "train",
    "validation",
)
"""Options that are paths."""


def _check_paths(options: argparse.Namespace) -> None:
    """Puts the home folder for `~/` in options that are paths.

    Raises:
      UserError: an option names a path of another machine.
    """
    for name in _PATHS:
        given = getattr(options, name, None) or ()
        for path in [given] if isinstance(given, str) else given:
            check_local(path, "convert" if name == "paths" else f"--{name.replace('_', '-')}")
        if given:
            setattr(options, name, expand(given) if isinstance(given, str) else [expand(str(path)) for path in given])


def _run_one_of_several(options: argparse.Namespace, cluster: Cluster) -> int:
    """Runs the command in a process of its own that works with others; returns its exit status."""
    trains = options.run_command in (commands.pretrain, commands.finetune)
    advice = "Start the same command again on all hosts" + ("; it resumes from the last checkpoint" if trains else "")
    if (status := supervise(advice)) is not None:
        return status
    from jaxlm.parallel import connect, processes

    def run_command(options: argparse.Namespace) -> None:
        connect.connect(cluster, connect.patience(options.connect_timeout, options.heartbeat), stop_steps=trains)
        setup_logging(options.verbose, process=processes.process_index())
        with processes.error_boundary(advice):
            options.run_command(options)

    setup_logging(options.verbose)
    return processes.shutdown(_run(options, run_command))


def _run(options: argparse.Namespace, run_command: Callable[[argparse.Namespace], None]) -> int:
    """Runs a command; returns its exit status."""
    try:
        run_command(options)
    except UserError as error:
        return _fail("error", error, 2)
    except Interrupted as error:
        return _fail("interrupted", error, 3)
    except RunFailure as error:
        return _fail("failed", error, 1)
    except KeyboardInterrupt as error:
        return _fail("interrupted", str(error) or "nothing was saved", 3)
    except (RuntimeError, AssertionError) as error:
        if (absent := explain_absent(error)) is None:
            raise
        return _fail("error", absent, 2)
    except BrokenPipeError:  # the reader of our standard output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console program and of scripts/*.py: `main` in a process of its own."""
    command = next(iter(sys.argv[1:] if argv is None else argv), "")
    restart_with_settings(keep_memory=command in ("finetune", "bench", "sweep"))
    sys.exit(main(argv))


def _fail(kind: str, message: Any, status: int) -> int:
    print(printable(f"{kind}: {message}"), file=sys.stderr)
    return status
