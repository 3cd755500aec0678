"""Experiment trackers: what each hears, by its own public calls; one that fails never stops a run."""

from __future__ import annotations

import io
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.run.trackers import check_trackers, open_trackers
from jaxlm.run.tracking import Tracker

CONFIG = {"name": "tiny", "train.epochs": 3, "data.max_length": 48}


class Calls(list):
    """Everything that a fake package was asked."""

    def note(self, name, answer=None):
        def call(*arguments, **options):
            self.append((name, arguments, options))
            return answer(*arguments, **options) if callable(answer) else answer

        return call

    def of(self, name):
        return [(arguments, options) for called, arguments, options in self if called == name]


def fake(monkeypatch, name, **parts):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(parts)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def packages(monkeypatch):
    calls = Calls()
    run = SimpleNamespace(
        id="w1",
        log=calls.note("wandb.log"),
        define_metric=calls.note("wandb.define_metric"),
        summary=SimpleNamespace(update=calls.note("wandb.summary")),
        finish=calls.note("wandb.finish"),
    )
    settings, table = (lambda **options: options), (lambda **options: options)
    fake(monkeypatch, "wandb", init=calls.note("wandb.init", run), Settings=settings, Table=table)
    client = SimpleNamespace(
        get_experiment_by_name=calls.note("mlflow.get_experiment_by_name"),
        create_experiment=calls.note("mlflow.create_experiment", "7"),
        create_run=calls.note("mlflow.create_run", SimpleNamespace(info=SimpleNamespace(run_id="m1"))),
        **{name: calls.note(f"mlflow.{name}") for name in ("update_run", "log_batch", "log_text", "set_terminated")},
    )
    fake(monkeypatch, "mlflow", MlflowClient=lambda: client)
    entities = {"Metric": lambda *values: values, "Param": lambda *values: values}
    fake(monkeypatch, "mlflow.entities", **entities)
    noted = {name: calls.note(f"trackio.{name}") for name in ("init", "log", "finish")}
    fake(monkeypatch, "trackio", Table=lambda **options: options, **noted)
    return calls


def follow(run_dir, names, *, step=0, finished=True):
    """A short run that is tracked."""
    trackers = open_trackers(names, run_dir, None, CONFIG)
    console = Console(file=io.StringIO())
    with Tracker(
        run_dir, resume_step=step, total_steps=20, tensorboard=False, trackers=trackers, console=console
    ) as track:
        track.log_train(step + 10, {"loss": 0.5, "grad_norm": float("nan")})
        track.log_samples(step + 10, [{"prompt": "the film", "text": "was good"}])
        track.log_evaluation(step + 10, "validation (best)", {"accuracy": 0.75, "f1/pos": 0.5})
        if finished:
            track.log_summary({"test": {"accuracy": 0.7, "f1/pos": 0.5}})


def test_wandb_hears_of_a_run_and_goes_on_with_it(packages, tmp_path):
    follow(tmp_path, ["wandb"], finished=False)
    [(_, options)] = packages.of("wandb.init")
    assert (options["project"], options["name"], options["id"]) == ("jaxlm", tmp_path.name, None)
    assert options["config"] == CONFIG and options["dir"] == str(tmp_path)
    heard = [arguments[0] for arguments, _ in packages.of("wandb.log")]
    assert heard[0] == {"train/loss": 0.5, "step": 10}
    assert heard[1]["samples"] == {"columns": ["prompt", "text"], "data": [["the film", "was good"]]}
    assert heard[2] == {"validation_best/accuracy": 0.75, "step": 10}
    assert packages.of("wandb.finish") == [((), {"exit_code": 1})]
    follow(tmp_path, ["wandb"], step=10)
    assert packages.of("wandb.init")[1][1]["id"] == "w1" and packages.of("wandb.init")[1][1]["resume"] == "allow"
    assert packages.of("wandb.summary")[-1][0] == ({"final/test/accuracy": 0.7},)
    assert packages.of("wandb.finish")[-1] == ((), {"exit_code": 0})


def test_mlflow_hears_of_a_run_and_goes_on_with_it(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    follow(tmp_path, ["mlflow"])
    assert packages.of("mlflow.create_experiment") == [(("films",), {})]
    batches = packages.of("mlflow.log_batch")
    assert batches[0] == (("m1",), {"params": [(key, str(value)) for key, value in CONFIG.items()]})
    metrics = [metric for _, options in batches[1:] for metric in options["metrics"]]
    assert [(name, value, step) for name, value, _, step in metrics] == [
        ("train/loss", 0.5, 10), ("validation_best/accuracy", 0.75, 10), ("final/test/accuracy", 0.7, 0),
    ]  # fmt: skip
    [(arguments, _)] = packages.of("mlflow.log_text")
    assert json.loads(arguments[1])["text"] == "was good" and arguments[2] == "samples/10.jsonl"
    assert packages.of("mlflow.set_terminated") == [(("m1", "FINISHED"), {})]
    follow(tmp_path, ["mlflow"], step=10, finished=False)
    assert len(packages.of("mlflow.create_run")) == 1  # the second goes on in it
    assert packages.of("mlflow.set_terminated")[-1] == (("m1", "FAILED"), {})


def test_trackio_hears_of_a_run_and_goes_on_with_it(packages, tmp_path):
    follow(tmp_path, ["trackio"])
    follow(tmp_path, ["trackio"], step=10)
    (first, again) = [options for _, options in packages.of("trackio.init")]
    assert first["name"] == again["name"] and (first["resume"], again["resume"]) == ("never", "allow")
    assert packages.of("trackio.log")[0] == (({"train/loss": 0.5},), {"step": 10})
    assert len(packages.of("trackio.finish")) == 2


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(packages, tmp_path, monkeypatch, caplog):
    def broken(*_arguments, **_options):
        raise ConnectionError("the server\nis away")

    run = sys.modules["wandb"].init()
    monkeypatch.setattr(run, "log", broken)
    follow(tmp_path, ["wandb", "mlflow"])
    said = [record.message for record in caplog.records]
    assert said == ["logging.trackers: wandb failed (ConnectionError: the server); the run goes on without it"]
    assert packages.of("mlflow.set_terminated") == [(("m1", "FINISHED"), {})]
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2


def test_a_tracker_that_cannot_be_opened_stops_a_run_only_at_its_beginning(packages, tmp_path, monkeypatch, caplog):
    follow(tmp_path, ["wandb"], finished=False)

    def broken(**_options):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", broken)
    follow(tmp_path, ["wandb"], step=10)
    assert "wandb cannot be opened (RuntimeError: api_key not configured)" in caplog.text
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(UserError, match="log in with 'wandb login', or set WANDB_MODE=offline"):
        open_trackers(["wandb"], new, None, CONFIG)


def test_runs_of_one_config_have_names_of_their_own(packages, tmp_path):
    (tmp_path / "films" / "seed-1").mkdir(parents=True)
    (tmp_path / "films" / "config.yaml").write_text("name: films\n")
    open_trackers(["wandb"], tmp_path / "films" / "seed-1", "mine", CONFIG)
    [(_, options)] = packages.of("wandb.init")
    assert (options["project"], options["name"]) == ("mine", "films-seed-1")


def test_what_a_tracker_prints_is_no_answer(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["trackio"], "init", lambda **_options: print("* Trackio project initialized"))
    follow(tmp_path, ["trackio"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_a_missing_package_is_named_before_the_run_starts(extra, tmp_path, monkeypatch, capsys):
    from helpers.finetuning_runs import write_config

    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    config = write_config(tmp_path, logging={"trackers": ["wandb"], "directory": str(tmp_path / "runs")})
    assert main(["finetune", "--config", str(config), *extra]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "error: logging.trackers: wandb is not installed; pip install 'jaxlm[wandb]'"
    assert not (tmp_path / "runs").exists()
    check_trackers([])


@pytest.mark.filterwarnings("ignore")
def test_a_real_mlflow_keeps_a_run_in_a_file(tmp_path, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")  # mlflow-skinny comes without what it keeps runs in
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    follow(tmp_path, ["mlflow"], finished=False)
    follow(tmp_path, ["mlflow"], step=10)
    assert not caplog.messages
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("jaxlm").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["train.epochs"] == "3"
    assert run.data.metrics["final/test/accuracy"] == 0.7
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [10, 20]


@pytest.mark.filterwarnings("ignore")
def test_a_real_wandb_keeps_a_run_offline(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(tmp_path, ["wandb"], finished=False)
    follow(tmp_path, ["wandb"], step=10)
    assert not caplog.messages
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2  # the same run, twice; `wandb sync` joins them
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"]


@pytest.mark.filterwarnings("ignore")
def test_a_real_trackio_keeps_a_run_in_a_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    follow(tmp_path, ["trackio"], finished=False)
    follow(tmp_path, ["trackio"], step=10)
    assert not caplog.messages and any((tmp_path / "trackio").iterdir())
    assert json.loads((tmp_path / "trackers.json").read_text())["trackio"].startswith(tmp_path.name)
