"""Whether a process is one of several, from flags and environments as TPU pods, SLURM and Kubernetes make them."""

from __future__ import annotations

import http.server
import threading

import pytest

from jaxlm.errors import UserError
from jaxlm.parallel import cluster
from jaxlm.parallel.cluster import detect_cluster

SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[1-4]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}  # fmt: skip
EXPLICIT = {
    "coordinator_address": "box0:8476",
    "num_processes": 2,
    "process_id": 1,
    "cluster_detection_method": "deactivate",
}


def test_a_process_by_itself():
    assert detect_cluster(environ={}) is None
    assert detect_cluster(environ={**SLURM, "SLURM_NTASKS": "1"}) is None
    assert detect_cluster(environ={name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}) is None  # no srun
    assert detect_cluster("box0:8476", 1, 0, environ={}) is None


@pytest.mark.parametrize("flags", [("box0:8476", 2, 1), (None, 2, 1), (None, None, 1), (None, None, None)])
def test_flags_go_before_the_environment(flags):
    environ = {"JAX_COORDINATOR_ADDRESS": "box0:8476", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    for value, (name, text) in zip(flags, tuple(environ.items()), strict=True):
        environ[name] = text if value is None else "no:1 at all"
    found = detect_cluster(*flags, environ=environ)
    assert found is not None and found.arguments == EXPLICIT


def test_an_indexed_job_numbers_the_processes():
    environ = {"JAX_COORDINATOR_ADDRESS": "box0:8476", "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}
    found = detect_cluster(environ=environ)
    assert found is not None and found.arguments == EXPLICIT
    assert detect_cluster(environ={"JOB_COMPLETION_INDEX": "1"}) is None


@pytest.mark.parametrize(
    "flags, message",
    [
        (("box0:8476", 2, None), "expected --process-id or JAX_PROCESS_ID too"),
        ((None, None, 1), "--coordinator or JAX_COORDINATOR_ADDRESS and --num-processes or JAX_NUM_PROCESSES too"),
        (("box0:8476", 2, 2), "--process-id=2: expected 0 to 1"),
        (("box0", 2, 1), "--coordinator: expected HOST:PORT; found 'box0'"),
        ((None, -3, 1), "expected --coordinator"),
        (("a:1", -3, 1), "--num-processes .*expected a whole number; found '-3'"),
    ],
)
def test_mistakes_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        detect_cluster(*flags, environ={})


@pytest.mark.parametrize("per_node, devices", [("1(x4)", []), ("1", []), ("8(x4)", None), ("2,1", None)])
def test_slurm(per_node, devices):
    """JAX would give the only task of a node one of its GPUs."""
    found = detect_cluster(environ={**SLURM, "SLURM_STEP_TASKS_PER_NODE": per_node})
    assert found is not None and found.name == "SLURM"
    assert found.arguments.get("local_device_ids") == devices


class Metadata(http.server.BaseHTTPRequestHandler):
    """What a TPU VM's metadata server says of the slice's hosts."""

    hosts = "10.0.0.1,10.0.0.2"
    environment = ""

    def do_GET(self):
        known = {"worker-network-endpoints": self.hosts, "tpu-env": self.environment}
        answer = known.get(self.path.rpartition("/")[2])
        assert self.headers["Metadata-Flavor"] == "Google"
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write((answer or "").encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def tpu(monkeypatch):
    """A machine with TPU chips."""
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster.glob, "glob", lambda pattern: ["/dev/accel0"])


@pytest.mark.parametrize(
    "hosts, environment, several",
    [
        ("10.0.0.1,10.0.0.2", "", True),
        ("10.0.0.1", "ACCELERATOR_TYPE: 'v5litepod-8'\n", False),
        ("10.0.0.1", "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n", True),
        ("10.0.0.1", "MEGASCALE_NUM_SLICES: '1'\n", False),
    ],
)
def test_tpu_vms_of_a_slice_or_of_several(tpu, monkeypatch, hosts, environment, several):
    """A host by itself in its slice learns of the other slices as JAX does, from the metadata server."""
    monkeypatch.setattr(Metadata, "hosts", hosts)
    monkeypatch.setattr(Metadata, "environment", environment)
    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = detect_cluster(environ={"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"})
        server.shutdown()
    assert (found is not None and found.name == "Cloud TPU" and not found.arguments) == several


def test_tpu_pods_of_kubernetes_and_other_platforms(tpu):
    several = {"TPU_WORKER_HOSTNAMES": "a,b"}
    assert detect_cluster(environ=several) is not None
    assert detect_cluster(environ={"TPU_WORKER_HOSTNAMES": "a", "TPU_SKIP_MDS_QUERY": "1"}) is None
    assert detect_cluster(environ={"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}) is not None
    assert detect_cluster(environ={**several, "JAX_PLATFORMS": "cpu"}) is None
