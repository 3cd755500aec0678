"""The mesh of a config, and what `mesh.preset: auto` chooses by devices and model size."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxlm.errors import UserError
from jaxlm.parallel import processes
from jaxlm.parallel.chips import CHIPS, GIB
from jaxlm.parallel.config import MeshConfig
from jaxlm.parallel.mesh import choose_mesh, device_memory, is_absent, make_mesh, num_slices


def chosen(parameters: float, mesh: dict | None = None, divides=lambda mesh: True):
    choice = choose_mesh(MeshConfig(**(mesh or {})), int(parameters), divides)
    return tuple(choice.mesh.shape.values()), choice.description


def test_auto_takes_ddp_while_the_whole_state_fits_half_a_device():
    # 16 bytes a parameter, half of 16 GiB: 512 Mi parameters.
    sizes, why = chosen(2**29)
    assert sizes == (8, 1, 1, 1)
    assert why == "ddp: data 8 (auto: state of 8.00 GiB per device within 50% of 16 GiB, assumed of a cpu device; " \
                  "8.00 GiB in all)"  # fmt: skip


def test_auto_takes_fsdp_while_a_share_fits():
    sizes, why = chosen(2**29 + 1)
    assert sizes == (1, 8, 1, 1) and why.startswith("fsdp: fsdp 8 (auto: state of 1.00 GiB per device")
    assert chosen(2**32)[0] == (1, 8, 1, 1)


def test_auto_splits_over_tensor_where_fsdp_does_not_divide():
    sizes, why = chosen(2**30, divides=lambda mesh: mesh.shape["fsdp"] <= 2)
    assert sizes == (1, 2, 1, 4) and why.startswith("fsdp_tp: fsdp 2, tensor 4 (auto")


def test_auto_says_when_nothing_fits():
    sizes, why = chosen(2**34)
    assert sizes == (1, 1, 1, 8) and "state of 32.00 GiB per device, above 50% of 16 GiB" in why
    assert "more devices would help" in why
    with pytest.raises(UserError, match="no layout over 8 devices divides the model's dimensions"):
        chosen(1, divides=lambda mesh: False)


def test_auto_on_one_device():
    choice = choose_mesh(MeshConfig(), 2**20, lambda mesh: True, jax.devices()[:1])
    assert choice.description.startswith("ddp: one device (auto")


def test_auto_leaves_room_for_context():
    assert chosen(1e6, {"context": 2})[0] == (4, 1, 2, 1)


def test_sizes_beside_auto_are_refused():
    with pytest.raises(UserError, match=r"mesh.preset=auto chooses the sizes, found mesh.data=2, mesh.slices=2"):
        chosen(1, {"data": 2, "slices": 2})


@pytest.mark.parametrize(
    ("mesh", "sizes", "why"),
    [
        ({"preset": "tp"}, (1, 1, 1, 8), "tp: tensor 8"),
        ({"preset": "hybrid", "slices": 2}, (2, 4, 1, 1), "hybrid: data 2, fsdp 4"),
        ({"preset": "context", "context": 4, "data": -1}, (2, 1, 4, 1), "context: data 2, context 4"),
    ],
)
def test_a_preset_and_sizes(mesh, sizes, why):
    assert chosen(1e6, mesh) == (sizes, why)


def test_auto_across_tpu_slices():
    """Data crosses the slow network, one group of devices to a slice."""

    class Device(SimpleNamespace):
        __hash__ = object.__hash__

    device = lambda i: Device(  # noqa: E731
        id=i, platform="tpu", device_kind="TPU v5 lite", slice_index=i // 4, process_index=i // 4, core_on_chip=0,
        coords=(i % 2, i % 4 // 2, 0), memory_stats=lambda: None, client=None,
    )  # fmt: skip
    devices = [device(i) for i in range(8)]
    choice = choose_mesh(MeshConfig(), 2**30, lambda mesh: True, devices)
    assert choice.description.startswith(
        "hybrid: data 2, fsdp 4 (auto: state of 4.00 GiB per device within 50% of 16 GiB, that"
    )
    assert [{d.slice_index for d in group.ravel()} for group in choice.mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match="mesh.slices=4: the devices lie in 2 slices"):
        choose_mesh(MeshConfig(preset="hybrid", slices=4), 1, lambda mesh: True, devices)


def test_hybrid_counts_hosts_not_processes(monkeypatch):
    """Four processes on two hosts, numbered across them: data crosses between the hosts alone."""

    class Device(SimpleNamespace):
        __hash__ = object.__hash__

    devices = [Device(id=i, platform="gpu", device_kind="gpu", process_index=i // 2) for i in range(8)]
    monkeypatch.setattr(processes, "_peers", processes._PeerState())
    assert num_slices(devices) == 4  # nothing is known of hosts
    processes.set_hosts(["a boot", "b boot", "a boot", "b boot"])
    assert [processes.host_of(number) for number in range(5)] == [0, 1, 0, 1, 4]
    assert num_slices(devices) == 2
    mesh = make_mesh("hybrid", devices=devices)
    assert tuple(mesh.shape.values()) == (2, 4, 1, 1)
    assert [{d.process_index for d in group.ravel()} for group in mesh.devices] == [{0, 2}, {1, 3}]


def test_devices_of_a_topology_are_absent():
    assert not is_absent(make_mesh("ddp"))

    class Device(SimpleNamespace):
        __hash__ = object.__hash__

    for platform in ("tpu", "cpu"):
        device = Device(id=0, platform=platform, device_kind="", process_index=0)
        assert is_absent(Mesh(np.array([device]), ("data",)))


def test_memory_of_a_device():
    assert device_memory(jax.devices()[0]) == (16 * GIB, "assumed of a cpu device")
    reports = SimpleNamespace(device_kind="NVIDIA H200", memory_stats=lambda: {"bytes_limit": 7 * GIB})
    assert device_memory(reports) == (7 * GIB, "as the device reports")
    for kind, chip in {"TPU v5 lite": "v5e", "TPU v5": "v5p", "NVIDIA H200": "h200"}.items():
        ahead = SimpleNamespace(device_kind=kind, memory_stats=lambda: None)
        assert device_memory(ahead) == (CHIPS[chip].memory, f"that of a {kind}")
