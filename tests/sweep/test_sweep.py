"""A sweep: which runs it makes, what ends early, what is taken up again, and what is said of them."""

from __future__ import annotations

import json
import math
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.config.training import LoggingConfig
from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.errors import Interrupted, RunFailure, UserError
from jaxlm.sweep import sweep
from jaxlm.sweep.results import sweep_lines
from jaxlm.sweep.space import Range, load_space
from jaxlm.sweep.study import Study
from jaxlm.sweep.sweep import Search, run_sweep
from jaxlm.training.run import Evaluated

pytest.importorskip("optuna")

ROWS = SourceConfig(rows=({"text": "x", "label": "a"},))
SPACE = {
    "optimizer.learning_rate": Range(low=1e-5, high=1e-1, log=True),
    "train.batch_size": (8, 16),
    "train.epochs": Range(low=1, high=3),
}
BEST_RATE = 1e-3


def config(folder: Path, name: str = "x") -> Config:
    data = DataConfig(train=ROWS, validation=ROWS)
    return Config(name=name, data=data, logging=LoggingConfig(directory=str(folder)))


class Chain:
    """Stands for `run_chain`: the score falls with the distance of the learning rate from the best one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, evaluations: int = 3, lower: bool = False) -> None:
        self.ran: list[Config] = []
        self.evaluations, self.lower = evaluations, lower
        self.fail: dict[int, Exception] = {}
        monkeypatch.setattr(sweep, "run_chain", self)

    def __call__(self, one: Config, *, after_evaluation: Any) -> dict[str, Any]:
        self.ran.append(one)
        number = len(self.ran) - 1
        distance = abs(math.log10(one.optimizer.learning_rate / BEST_RATE))
        score = distance if self.lower else 1 - distance / 3
        name = "loss" if self.lower else "accuracy"
        for i in range(1, self.evaluations + 1):
            after_evaluation(Evaluated(i, name, score, not self.lower))
            if i == 2 and number in self.fail:
                raise self.fail[number]
        metrics = [{"name": name, "higher_is_better": not self.lower, "headline": True}]
        return {"metric": name, "metrics": metrics, "scores": {"validation": {name: score}}}

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.ran]


def test_finds_the_best_and_writes_it_as_a_config(tmp_path, monkeypatch):
    chain = Chain(monkeypatch)
    summary = run_sweep(config(tmp_path), Search(SPACE, 12, pruning=False), command="jaxlm sweep")
    assert chain.names == [f"trial-{i}" for i in range(12)]
    directories = {one.logging.directory for one in chain.ran}
    assert directories == {str(tmp_path / "x-sweep")}
    scores = [1 - abs(math.log10(one.optimizer.learning_rate / BEST_RATE)) / 3 for one in chain.ran]
    best = scores.index(max(scores))
    assert summary["best"] == best and summary["trials"][best]["value"] == pytest.approx(max(scores))
    made = load_config(tmp_path / "x-sweep/best.yaml")
    assert made.name == "x" and made.logging.directory == str(tmp_path)
    assert made.optimizer.learning_rate == chain.ran[best].optimizer.learning_rate
    assert made.train.batch_size in (8, 16) and made.train.epochs in (1, 2, 3)
    page = (tmp_path / "x-sweep/report.html").read_text()
    assert "12 trials of x" in page and "History" in page and "log10 of optimizer.learning_rate" in page
    assert json.loads((tmp_path / "x-sweep/summary.json").read_text()) == summary
    assert sweep_lines(summary).splitlines()[-1].startswith(f"trial {best} ")


def test_of_a_loss_the_least_is_the_best(tmp_path, monkeypatch):
    chain = Chain(monkeypatch, lower=True)
    summary = run_sweep(config(tmp_path), Search(SPACE, 5, pruning=False))
    losses = [abs(math.log10(one.optimizer.learning_rate / BEST_RATE)) for one in chain.ran]
    assert summary["metric"] == "loss" and summary["best"] == losses.index(min(losses))
    assert [t["value"] for t in summary["trials"]] == pytest.approx(losses)


def test_poor_trials_end_early_and_lose_their_checkpoints(tmp_path, monkeypatch):
    Chain(monkeypatch)
    (tmp_path / "x-sweep/trial-6/checkpoints/1").mkdir(parents=True)
    found = {}
    for pruning in (True, False):
        name = "x" if pruning else "y"
        trials = run_sweep(config(tmp_path, name), Search(SPACE, 16, pruning=pruning))["trials"]
        found[pruning] = [t["evaluations"] for t in trials if t["state"] == "ended early"]
        finished = [t for t in trials if t["state"] == "finished"]
        assert len(finished) + len(found[pruning]) == 16
    assert found[True] and set(found[True]) == {1} and not found[False]
    ended = [t["number"] for t in json.loads((tmp_path / "x-sweep/summary.json").read_text())["trials"]
             if t["state"] == "ended early"]  # fmt: skip
    assert all(not (tmp_path / f"x-sweep/trial-{n}/checkpoints").exists() for n in ended)


def test_an_interrupted_trial_is_taken_up_with_the_same_settings(tmp_path, monkeypatch):
    chain = Chain(monkeypatch)
    chain.fail = {2: Interrupted("SIGINT: saved at step 4 of 9; the same command resumes")}
    search = Search(SPACE, 5, pruning=False)
    with pytest.raises(Interrupted):
        run_sweep(config(tmp_path), search)
    summary = run_sweep(config(tmp_path), search)
    assert chain.names == ["trial-0", "trial-1", "trial-2", "trial-2", "trial-3", "trial-4"]
    assert chain.ran[2] == chain.ran[3]
    assert [t["state"] for t in summary["trials"]] == ["finished"] * 5
    assert [t["evaluations"] for t in summary["trials"]] == [3] * 5
    straight = Chain(monkeypatch)
    run_sweep(config(tmp_path, "straight"), search)
    rates = [[one.optimizer.learning_rate for one in made.ran] for made in (chain, straight)]
    assert rates[0][:2] + rates[0][3:] == rates[1]  # the interruption changed no choice
    more = Chain(monkeypatch)
    run_sweep(config(tmp_path), search)
    assert more.names == []
    run_sweep(config(tmp_path), search._replace(trials=6))
    assert more.names == ["trial-5"]


def test_a_diverged_trial_is_passed_over_and_a_mistake_ends_the_sweep(tmp_path, monkeypatch):
    chain = Chain(monkeypatch)
    chain.fail = {1: RunFailure("step 3: the loss is not finite")}
    trials = run_sweep(config(tmp_path), Search(SPACE, 3))["trials"]
    assert [t["state"] for t in trials] == ["finished", "failed", "finished"]
    assert trials[1]["error"] == "step 3: the loss is not finite"
    wrong = Chain(monkeypatch)
    wrong.fail = {0: UserError("data.train: no such file")}
    with pytest.raises(UserError, match=r"trial 0 \(optimizer.learning_rate=.*\): data.train: no such file"):
        run_sweep(config(tmp_path, "wrong"), Search(SPACE, 3))
    wrong.fail = {i: RunFailure("diverged") for i in range(9)}
    with pytest.raises(RunFailure, match="no trial ended with a score"):
        run_sweep(config(tmp_path, "wrong"), Search(SPACE, 3))


def test_processes_share_a_study_and_never_a_trial(tmp_path):
    """Locks are between open files, so that two studies of one process stand for two processes."""
    studies = [Study(tmp_path, SPACE, seed=0, pruning=False) for _ in range(2)]
    taken: list[int] = []

    def work(study: Study) -> None:
        while True:
            with ExitStack() as held:
                chosen = study.next(8, held)
                if chosen is None:
                    return
                taken.append(chosen.trial.number)
                study.study.tell(chosen.trial, 1.0)

    threads = [threading.Thread(target=work, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(8))
    with ExitStack() as held:
        running = studies[0].next(9, held)
        assert running is not None and studies[1].next(9, ExitStack()) is None  # its process lives
    with ExitStack() as held:
        again = studies[1].next(9, held)
        assert again is not None and again.values == running.values and again.trial.number == running.trial.number


def test_another_space_or_config_is_refused(tmp_path, monkeypatch):
    Chain(monkeypatch)
    run_sweep(config(tmp_path), Search(SPACE, 1))
    with pytest.raises(UserError, match=r"another space \(train.batch_size: \[8, 16\] then, \[8, 32\] now"):
        run_sweep(config(tmp_path), Search({**SPACE, "train.batch_size": (8, 32)}, 2))
    other = config(tmp_path).model_copy(update={"seed": 7})
    with pytest.raises(UserError, match=r"another config \(seed: 0 then, 7 now"):
        run_sweep(other, Search(SPACE, 2))
    with pytest.raises(UserError, match="data.validation: expected rows to compare"):
        run_sweep(config(tmp_path).model_copy(update={"data": DataConfig(train=ROWS)}), Search(SPACE, 1))


def space(folder: Path, content: Any) -> Any:
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_space(path, config(folder))


def test_a_space_is_read_as_it_is_meant(tmp_path):
    text = "optimizer.learning_rate: {low: 1e-5, high: 1e-4, log: true}\ntrain.epochs: {low: 1, high: 3}\n"
    made = space(tmp_path, text + "optimizer.schedule: [linear, cosine]\noptimizer.clip_norm: [null, 1.0]\n")
    assert made["optimizer.learning_rate"] == Range(low=1e-5, high=1e-4, log=True)
    assert made["train.epochs"].whole and not made["optimizer.learning_rate"].whole
    assert made["optimizer.schedule"] == ("linear", "cosine") and made["optimizer.clip_norm"] == (None, 1.0)


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "expected a mapping of config keys"),
        ({"optimizer.learning_rte": [1e-3, 1e-2]}, "unknown key optimizer.learning_rte.*learning_rate"),
        ({"optimizer.learning_rate": {"low": 0.1, "high": 0.01}}, "expected low below high, found 0.1 and 0.01"),
        ({"optimizer.learning_rate": {"low": 0, "high": 1, "log": True}}, "expected low above 0 with log"),
        ({"optimizer.learning_rate": {"low": 0.1}}, "high: .*expected low, high"),
        ({"optimizer.learning_rate": [0.1]}, "expected a list of at least two values"),
        ({"train.seeds": [2, 3]}, "train.seeds: a sweep does not choose it"),
        ({"train.batch_size": ["many", "few"]}, "train.batch_size: expected integer"),
        ({"train.batch_size": [8, "few"]}, 'a trial may have train.batch_size="few", and .*: expected integer'),
        ({"train.ema": {"low": 0.5, "high": 1.5}}, "a trial may have train.ema=1.5, and .* < 1"),
        (
            {"train.mixup": [None, 0.5], "train.r_drop": [None, 1.0]},
            "train.mixup=0.5, train.r_drop=1.0, and .* not both",
        ),
        ({"train.batch_size": [1, 2, 3, 4, 5, 6], "train.ema": [0.1, 0.2, 0.3, 0.4, 0.5, 2.0]}, "train.ema=2.0, and"),
    ],
)
def test_a_space_that_is_none_is_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        space(tmp_path, content)
