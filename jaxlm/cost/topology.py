"""Devices that are not there: TPU and GPU topologies whose real compilers run on this machine, and fake CPU devices."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from typing import Any, NamedTuple

from jaxlm.errors import RunFailure, UserError
from jaxlm.parallel.chips import CHIPS, Chip

MAX_CHIPS = 256
_TPU = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
"""Dimensions of a topology of this kind."""
_GPU = ("h100", "h200")
EXAMPLES = "v5e:2x4, v5p:4x4x4, v6e:16x16, v4:4x4x4, h200:8"


class Topology(NamedTuple):
    """A kind of chip and how many there are, in which arrangement."""

    name: str
    chip: Chip
    sizes: tuple[int, ...]
    """Of one slice."""
    slices: int = 1

    @property
    def num_chips(self) -> int:
        return self.slices * math.prod(self.sizes)

    @property
    def platform(self) -> str:
        return "gpu" if self.chip.name in _GPU else "tpu"


def parse_topology(name: str) -> Topology:
    """Reads `KIND:SIZES`: `v5e:2x4`, `v5p:4x4x4`, `h200:8`; `v5e:4x8*2` are two slices of v5e:4x8.

    Raises:
      UserError: an unknown kind, a wrong number of dimensions, or more than 256 chips.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", name.strip().lower())
    if match is None:
        raise UserError(f"--topology {name}: expected KIND:SIZES, for instance {EXAMPLES}")
    kind, sizes = match[1], tuple(int(size) for size in match[2].split("x"))
    if kind not in CHIPS:
        raise UserError(f"--topology {name}: unknown kind {kind!r}; expected one of {', '.join(CHIPS)}")
    rank = _TPU.get(kind, 1)
    if len(sizes) != rank:
        raise UserError(
            f"--topology {name}: {kind} has {rank} dimension{'s' if rank > 1 else ''}, for instance "
            f"{next(example for example in (*EXAMPLES.split(', '), 'h100:8') if example.startswith(kind))}"
        )
    slices = int(match[3] or 1)
    if slices != 1 and kind in _GPU:
        raise UserError(f"--topology {name}: only TPUs come in slices; expected {kind}:N")
    times = f"*{slices}" if slices > 1 else ""
    topology = Topology(f"{kind}:{match[2]}{times}", CHIPS[kind], sizes, slices)
    if not 1 <= topology.num_chips <= MAX_CHIPS:
        raise UserError(f"--topology {name}: expected 1 to {MAX_CHIPS} chips, found {topology.num_chips}")
    return topology


class CompileTarget(NamedTuple):
    """Devices to compile for without having them."""

    topology: Topology | None
    """None: fake CPU devices."""
    number: int

    def set_environment(self) -> None:
        """Prepares the process, before it imports JAX."""
        os.environ["JAX_PLATFORMS"] = "cpu"
        # libtpu would ask a metadata server for the machine's TPU, and take a lock that a run beside this may hold.
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
        if self.topology is None:
            flag = "--xla_force_host_platform_device_count"
            others = [part for part in os.environ.get("XLA_FLAGS", "").split() if not part.startswith(flag)]
            os.environ["XLA_FLAGS"] = " ".join([*others, f"{flag}={self.number}"])

    def devices(self) -> list[Any]:
        """For a mesh that programs are compiled for.

        Raises:
          UserError: the compiler is not installed or refuses the topology; JAX was started with fewer CPU devices.
        """
        if self.topology is not None:
            return topology_devices(self.topology)
        import jax

        devices = jax.devices("cpu")
        if len(devices) < self.number:
            raise UserError(f"mesh.devices={self.number}: JAX was started with {len(devices)} CPU devices")
        return devices[: self.number]


_DEVICES = "mesh.devices="
"""Not a key of the config: a machine's devices are not a setting. `--dry-run` takes it among the overrides."""


def requested(topology: str | None, overrides: Sequence[str], *, dry_run: bool) -> CompileTarget | None:
    """What `--topology` or `mesh.devices=N` ask for; None: the devices that are here.

    Raises:
      UserError: without --dry-run, both at once, or a malformed value.
    """
    numbers = [override.removeprefix(_DEVICES) for override in overrides if override.startswith(_DEVICES)]
    if topology is None and not numbers:
        return None
    asked = f"--topology {topology}" if topology is not None else f"{_DEVICES}{numbers[-1]}"
    if not dry_run:
        raise UserError(f"{asked}: only with --dry-run; a run takes the devices that are there")
    if topology is not None and numbers:
        raise UserError(f"{asked}: expected it or {_DEVICES}{numbers[-1]}, not both")
    if topology is not None:
        parsed = parse_topology(topology)
        return CompileTarget(parsed, parsed.num_chips)
    if not re.fullmatch(r"[1-9]\d*", numbers[-1]) or int(numbers[-1]) > MAX_CHIPS:
        raise UserError(f"{asked}: expected a number of fake CPU devices, 1 to {MAX_CHIPS}")
    return CompileTarget(None, int(numbers[-1]))


def other_overrides(overrides: Sequence[str]) -> list[str]:
    """Those that are keys of the config."""
    return [override for override in overrides if not override.startswith(_DEVICES)]


def topology_devices(topology: Topology) -> list[Any]:
    """The devices of a topology, for a mesh that programs are compiled for.

    Raises:
      UserError: the compiler is not installed, or refuses the topology.
    """
    import jax
    from jax.experimental import topologies

    gpu = topology.platform == "gpu"
    find = _find_cuda if gpu else _find_libtpu
    find(topology)
    try:
        with quiet():
            if gpu:
                sizes = f"1x1x{topology.num_chips}"
                described = topologies.get_topology_desc(
                    platform="cuda", topology_name=sizes, topology=sizes, target_config=_target(topology.chip.name)
                )
            else:
                # A v4 chip is one device to JAX, as v5p is by default; the compiler's own default is two.
                megacore = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
                bounds = {} if math.prod(topology.sizes) > 1 else {"chips_per_host_bounds": (1,) * 3}
                slices = {"num_slices": topology.slices} if topology.slices > 1 else {}
                described = topologies.get_topology_desc(
                    platform="tpu", topology_name=topology.name.partition("*")[0], **megacore, **bounds, **slices
                )
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--topology {topology.name}: the compiler does not know it: {reason}") from error
    devices = list(described.devices)
    if len(devices) != topology.num_chips:
        raise RunFailure(f"--topology {topology.name}: {len(devices)} devices for {topology.num_chips} chips")
    return devices


def _find_libtpu(topology: Topology) -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {topology.name}: needs the TPU compiler, which runs without a TPU: pip install 'jaxlm[tpu]'. "
            "Without it, --dry-run mesh.devices=N compiles for N fake CPU devices"
        )


def _find_cuda(topology: Topology) -> None:
    """Loads JAX's CUDA plugin without a driver or a device."""
    for version in ("13", "12"):
        try:
            importlib.import_module(f"jax_plugins.xla_cuda{version}")
            return
        except ImportError:
            continue
    version = metadata.version("jax")
    raise UserError(
        f"--topology {topology.name}: needs JAX's CUDA compiler (no GPU): pip install 'jaxlm[cuda]', or, "
        f"without NVIDIA's libraries, pip install --no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
    )


def has_cudnn() -> bool:
    """Whether NVIDIA's cuDNN package is here; JAX asks for the library even where a program is only compiled."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.cudnn") is not None


def _target(chip: str) -> str:
    """What the CUDA compiler must know of a GPU."""
    return resources.files("jaxlm.cost").joinpath("targets", f"{chip}.txt").read_text(encoding="utf-8")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what compiled libraries write to standard error off the screen, unless the block fails."""
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Turns JAX's compilation cache off: a program for absent devices can be written there, but not be read back."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    key = "jax_compilation_cache_dir"
    directory = getattr(jax.config, key)
    jax.config.update(key, None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(key, directory)
        compilation_cache.reset_cache()
