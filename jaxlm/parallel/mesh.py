"""Which mesh a run gets: what its config says, or for `mesh.preset: auto` what suits devices and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxlm.errors import UserError
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
"""Sizes where the user gives none, the others being 1."""

STATE_BYTES = 16
"""Per parameter in training, float32: itself, its gradient, AdamW's two moments."""
STATE_SHARE = 0.5
"""Of a device's memory that those may take under `auto`; the rest is for activations."""
DEFAULT_MEMORY = 16 * GIB
"""Of a device that does not report its memory and is not in the table: a CPU."""
_SPLITS = (2, 4, 8)
"""Tensor sizes that `auto` tries: more would leave the fast links of most machines."""


class MeshChoice(NamedTuple):
    mesh: Mesh
    description: str
    """For the log: the preset, the sizes above 1, and under `auto` the reason."""


def choose_mesh(
    config: MeshConfig, num_parameters: int, divides: Callable[[Mesh], bool], devices: Sequence[Any] | None = None
) -> MeshChoice:
    """Returns the mesh of a config.

    `auto` takes ddp while the training state of the whole model (`STATE_BYTES` a parameter) fits `STATE_SHARE` of a
    device, else fsdp (across TPU slices hybrid) while its share does and every dimension divides, else fsdp_tp with as
    small a `tensor` as divides.

    Args:
      num_parameters: of the model.
      divides: whether every parameter can be split as a mesh asks.
      devices: jax devices; absent: all.
    Raises:
      UserError: sizes that do not fit the devices, or sizes beside `auto`.
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
    """Bytes of a device's memory, and where that is known from: the device, its kind, or a default."""
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
    """Returns a mesh with axes data, fsdp, context, tensor; one size may be -1, the devices that are left.

    Args:
      preset: one of `PRESETS`: the sizes that are not given.
      slices: groups of devices with a slow network between them, which only `data` crosses; absent: the TPU slices
        that there are; under hybrid, the processes of other devices; otherwise 1.
      devices: jax devices; absent: all.
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
    if not in_slices:
        # Of devices other than TPUs, the order stands for the distance.
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    elif reported == slices:
        inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    else:
        raise UserError(f"mesh.slices={slices}: the devices lie in {reported} slices; expected that, or leave it out")
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def num_slices(devices: Sequence[Any]) -> int:
    """Groups of devices that a slow network joins: TPU slices; processes of GPUs and CPUs."""
    tpu = devices[0].platform == "tpu"
    return len({getattr(device, "slice_index", 0) if tpu else device.process_index for device in devices})
