"""Chooses the mesh of a run: the one that the config names or, under `mesh.preset: auto`, one that fits the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxlm.errors import UserError
from jaxlm.parallel import processes
from jaxlm.parallel.chips import GIB, MEMORY
from jaxlm.parallel.config import MeshConfig
from jaxlm.parallel.sharding import MESH_AXES

PRESETS: dict[str, dict[str, int]] = {
    "ddp": {"data": -1},
    "fsdp": {"fsdp": -1},
    "fsdp_tp": {"fsdp": -1, "tensor": 2},
    "tp": {"tensor": -1},
    "hybrid": {"fsdp": -1},  # and `data`: the slices
    "context": {"context": -1},
}
"""Sizes of the axes that the user gives no size for; an axis that is not listed has size 1."""

STATE_BYTES = 16
"""Bytes of training state per parameter: weight, gradient and AdamW's two moments, each float32."""
STATE_SHARE = 0.5
"""Share of a device's memory that `auto` gives to the training state; the rest is left for activations."""
DEFAULT_MEMORY = 16 * GIB
"""Memory assumed of a device that does not report its own and is not in `MEMORY`, such as a CPU."""
_SPLITS = (2, 4, 8)
"""Tensor sizes that `auto` tries; larger ones would cross the slow links of most machines."""


class MeshChoice(NamedTuple):
    mesh: Mesh
    description: str
    """The preset, the sizes above 1 and, under `auto`, the reason for the choice; for the log."""


def choose_mesh(
    config: MeshConfig, num_parameters: int, divides: Callable[[Mesh], bool], devices: Sequence[Any] | None = None
) -> MeshChoice:
    """Returns the mesh that a config asks for.

    `auto` chooses ddp if the training state of the whole model (`STATE_BYTES` per parameter) fits in `STATE_SHARE` of
    one device's memory; else fsdp (hybrid on several TPU slices) if each device's share fits and every dimension
    divides; else fsdp_tp with the smallest `tensor` that divides.

    Args:
      num_parameters: number of parameters of the model.
      divides: returns whether a mesh divides every dimension of the parameters that it splits.
      devices: the JAX devices to use; absent: all.
    Raises:
      UserError: the sizes do not fit the number of devices, or sizes are given together with `auto`.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: getattr(config, axis) for axis in (*MESH_AXES, "slices")}
    if config.preset != "auto":
        mesh = make_mesh(config.preset, **sizes, devices=devices)
        return MeshChoice(mesh, f"{config.preset}{_sizes(mesh)}")
    given = [f"mesh.{name}={size}" for name, size in sizes.items() if size is not None and name != "context"]
    if given:
        raise UserError(f"mesh.preset=auto chooses the sizes, found {', '.join(given)}; name a preset beside them")
    return _auto(config.context, num_parameters, divides, devices)


def _auto(context: int | None, num_parameters: int, divides: Callable[[Mesh], bool], devices: list[Any]) -> MeshChoice:
    memory, source = device_memory(devices[0])
    state, room = STATE_BYTES * num_parameters, STATE_SHARE * memory
    slices = num_slices(devices) if devices[0].platform == "tpu" else 1
    presets = [("ddp", {})]
    presets += [("hybrid", {})] if slices > 1 else [("fsdp", {})]
    presets += [
        ("fsdp_tp", {"tensor": n, **({"data": slices, "slices": slices} if slices > 1 else {})})
        for n in _SPLITS
        if len(devices) // slices % n == 0
    ]
    if len(devices) == 1:
        presets = presets[:1]
    tried: list[tuple[str, Mesh]] = []
    for preset, sizes in presets:
        mesh = make_mesh(preset, **sizes, context=context, devices=devices)
        if not divides(mesh):
            continue
        tried.append((preset, mesh))
        share = state / (mesh.shape["fsdp"] * mesh.shape["context"] * mesh.shape["tensor"])
        if share <= room:
            reason = (
                f"auto: state of {share / GIB:.2f} GiB per device within {STATE_SHARE:.0%} of {memory / GIB:.0f} GiB, "
                f"{source}; {state / GIB:.2f} GiB in all"
            )
            return MeshChoice(mesh, f"{preset}{_sizes(mesh)} ({reason})")
    if not tried:
        raise UserError(
            f"mesh.preset=auto: no layout over {len(devices)} devices divides the model's dimensions; "
            "choose a preset and sizes"
        )
    preset, mesh = tried[-1]
    share = state / (mesh.shape["fsdp"] * mesh.shape["context"] * mesh.shape["tensor"])
    reason = (
        f"auto: state of {share / GIB:.2f} GiB per device, above {STATE_SHARE:.0%} of {memory / GIB:.0f} GiB, "
        f"{source}: it may not fit; more devices would help"
    )
    return MeshChoice(mesh, f"{preset}{_sizes(mesh)} ({reason})")


def device_memory(device: Any) -> tuple[int, str]:
    """Returns the bytes of a device's memory and the source of that number: the device, its kind, or a default."""
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # a device of a topology that programs are compiled for ahead of time
        stats = None
    if stats and stats.get("bytes_limit"):
        return int(stats["bytes_limit"]), "as the device reports"
    kind = device.device_kind
    if kind in MEMORY:
        return MEMORY[kind], f"that of a {kind}"
    return DEFAULT_MEMORY, f"assumed of a {kind} device"


def _sizes(mesh: Mesh) -> str:
    split = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    return f": {split}" if split else ": one device"


def make_mesh(
    preset: str = "ddp",
    *,
    data: int | None = None,
    fsdp: int | None = None,
    context: int | None = None,
    tensor: int | None = None,
    slices: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns a mesh with axes data, fsdp, context and tensor.

    One size may be -1; it becomes the number of devices that the other sizes leave.

    Args:
      preset: a key of `PRESETS`; it gives the sizes that the caller does not.
      slices: number of groups of devices that a slow network connects; only `data` crosses it. Absent: the number of
        TPU slices; of other devices, the number of hosts under hybrid, otherwise 1.
      devices: the JAX devices to use; absent: all.
    Raises:
      UserError: the sizes do not multiply to the number of devices, or the slices do not divide them.
    """
    devices = list(jax.devices() if devices is None else devices)
    reported = num_slices(devices)
    in_slices = devices[0].platform == "tpu" and reported > 1
    if slices is None:
        slices = reported if in_slices or preset == "hybrid" else 1
    default = {**PRESETS[preset], **({"data": slices} if preset == "hybrid" else {})}
    given = (data, fsdp, context, tensor)
    sizes = [default.get(axis, 1) for axis in MESH_AXES]
    if -1 in given:
        sizes = [max(size, 1) for size in sizes]  # the user's -1 takes the place of the preset's
    sizes = [size if own is None else own for size, own in zip(sizes, given, strict=True)]
    written = ", ".join(f"{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
    if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh: expected positive sizes with at most one -1, found {written}")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh: {written} does not fit {len(devices)} devices; "
            f"the sizes must multiply to {len(devices)} (one may be -1)"
        )
    if sizes[0] % slices:
        raise UserError(f"mesh: data={sizes[0]} cannot be spread over slices={slices}; expected a multiple of {slices}")
    if devices[0].platform != "tpu":
        # The order stands for the distance: devices of one host stay together.
        devices.sort(key=lambda device: (processes.host_of(device.process_index), device.id))
        grid = np.asarray(devices).reshape(sizes)
    elif not in_slices:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    elif reported == slices:
        inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    else:
        raise UserError(f"mesh.slices={slices}: the devices lie in {reported} slices; expected that, or leave it out")
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def num_slices(devices: Sequence[Any]) -> int:
    """Returns the number of groups of devices that a slow network connects: TPU slices, or hosts of GPUs and CPUs."""
    if devices[0].platform == "tpu":
        return len({getattr(device, "slice_index", 0) for device in devices})
    return len({processes.host_of(device.process_index) for device in devices})


def is_absent(mesh: Mesh) -> bool:
    """Returns whether a mesh's devices are those of a topology, which programs are only compiled for."""
    device = mesh.devices.flat[0]
    try:
        return device not in jax.devices(device.platform)
    except RuntimeError:  # this process has no device of that platform
        return True
