"""Several runs of one config: which they are, which are run again, and what is said of them together."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from jaxlm.config.loading import dump_config, load_config
from jaxlm.config.schema import Config
from jaxlm.config.training import LoggingConfig, TrainConfig
from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.examples.tables import ColumnRoles, open_tables
from jaxlm.errors import Interrupted, UserError
from jaxlm.report.repeats import repeat_lines, summarize
from jaxlm.run.run_dir import SUMMARY, RunDir
from jaxlm.tasks.masked_lm import MaskedLMConfig
from jaxlm.training.out_of_fold import write_out_of_fold
from jaxlm.training.repeats import repeats, run_repeats

ROWS = SourceConfig(rows=tuple({"text": f"text {i}", "label": "ab"[i % 2]} for i in range(12)))
SKIPPED = {"text": "text 5", "label": "b"}
"""A row that no run predicts, as `data.on_bad_row: skip` has it."""


def config(folder: Path, name: str = "x", seed: int = 0, data: dict[str, Any] | None = None, **train: Any) -> Config:
    return Config(
        name=name,
        seed=seed,
        data=DataConfig(**{"train": ROWS, **(data or {})}),
        train=TrainConfig(**train),
        logging=LoggingConfig(directory=str(folder)),
    )


def predict(row: dict[str, Any], name: str) -> dict[str, Any]:
    """What the run `name` says: the label, but of one row the other one."""
    wrong = {"a": 0.95, "b": 0.05} if row["text"] == "text 3" else {row["label"]: 0.9, "ab".strip(row["label"]): 0.1}
    return {"label": name, "scores": wrong}


class Trainer:
    """Stands for `run_training`: writes a run's summary, whose scores depend on the seed alone."""

    def __init__(self, stop_at: str = "") -> None:
        self.trained: list[str] = []
        self.stop_at = stop_at

    def __call__(self, one: Config) -> dict[str, Any]:
        directory = RunDir.open(Path(one.logging.directory), one.name, restart=one.train.restart)
        if directory.finished:
            return directory.read_json(SUMMARY)
        if one.name == self.stop_at:
            raise Interrupted("SIGINT: saved at step 3 of 9; the same command resumes")
        self.trained.append(one.name)
        directory.write_text("config.yaml", dump_config(one))
        if one.data.fold is not None:
            held_out = (
                open_tables(one.data, ("validation",), ColumnRoles(("text",), ("label",))).tables["validation"].rows
            )
            lines = [json.dumps({**row, "prediction": predict(row, one.name)}) for row in held_out if row != SKIPPED]
            directory.write_text("predictions/validation.jsonl", "\n".join(lines))
        score = one.seed * 0.1 + (one.data.fold.number if one.data.fold else 0) * 0.01
        summary = {
            "name": one.name, "status": "finished", "steps": 9, "best_step": 6, "metric": "accuracy",
            "metrics": [{"name": "accuracy", "higher_is_better": True, "headline": True}],
            "scores": {"validation": {"accuracy": score, "loss": 1.0}}, "problem": "binary", "label_names": ["a", "b"],
        }  # fmt: skip
        directory.write_json(SUMMARY, summary)
        return summary


def test_each_seed_is_a_run_in_the_directory(tmp_path):
    runs = repeats(config(tmp_path, seed=4, seeds=3))
    assert [(run.name, run.seed, run.train.seeds) for run in runs] == [
        ("seed-4", 4, None), ("seed-5", 5, None), ("seed-6", 6, None),
    ]  # fmt: skip
    assert {run.logging.directory for run in runs} == {str(tmp_path / "x")}
    corpus = config(tmp_path, seeds=2).model_copy(update={"task": MaskedLMConfig()})
    assert {run.data.token_cache for run in repeats(corpus)} == {str(tmp_path / ".tokens")}  # tokenized once


def test_mean_standard_deviation_and_the_best(tmp_path):
    summary = run_repeats(config(tmp_path, seed=2, seeds=3), Trainer(), command="jaxlm ...")
    values = [0.2, 0.3, 0.4]
    assert summary["scores"]["validation"]["accuracy"] == pytest.approx(statistics.mean(values))
    assert summary["sd"]["validation"]["accuracy"] == pytest.approx(statistics.stdev(values))
    assert summary["best"] == "seed-4" and summary["repeats"] == "seeds"
    assert [run["name"] for run in summary["runs"]] == ["seed-2", "seed-3", "seed-4"]
    assert json.loads((tmp_path / "x/summary.json").read_text()) == summary
    page = (tmp_path / "x/report.html").read_text()
    assert "Mean of 3 seeds" in page and "Each run" in page and "seed-3" in page
    assert "validation (x, mean ± sd)" in repeat_lines(summary) and "0.3000 ± 0.1000" in repeat_lines(summary)


def test_the_best_of_a_loss_is_the_least_and_undefined_scores_are_left_out():
    def one(loss: float, **scores: float) -> dict[str, Any]:
        metrics = [{"name": "loss", "higher_is_better": False, "headline": True}]
        split = {"loss": loss, **scores}
        return {"steps": 1, "best_step": 1, "metric": "loss", "metrics": metrics, "scores": {"validation": split}}

    summary = summarize("x", "seeds", {"a": one(0.5), "b": one(0.25, auc=0.5), "c": one(float("nan"))}, "")
    assert summary["best"] == "b"
    assert summary["scores"]["validation"] == {"loss": 0.375, "auc": 0.5} and "auc" not in summary["sd"]["validation"]


def test_finished_seeds_are_not_run_again_and_seeds_may_be_added(tmp_path):
    first = Trainer(stop_at="seed-1")
    with pytest.raises(Interrupted, match="the same command resumes"):
        run_repeats(config(tmp_path, seeds=2), first)
    assert first.trained == ["seed-0"] and not (tmp_path / "x/summary.json").exists()
    with pytest.raises(UserError, match="train.seeds: 2 then, None now"):
        run_repeats(config(tmp_path, folds=3), Trainer())  # one seed has a result already
    again, more = Trainer(), Trainer()
    run_repeats(config(tmp_path, seeds=2), again)
    assert again.trained == ["seed-1"]
    assert len(run_repeats(config(tmp_path, seeds=4), more)["runs"]) == 4
    assert more.trained == ["seed-2", "seed-3"]
    restarted = Trainer()
    with pytest.raises(Interrupted, match=r"the same command with train.restart=false resumes"):
        run_repeats(config(tmp_path, seeds=2, restart=True), Trainer(stop_at="seed-0"))
    run_repeats(config(tmp_path, seeds=2, restart=True), restarted)
    assert restarted.trained == ["seed-0", "seed-1"]


def test_one_run_and_several_do_not_mix(tmp_path):
    run_repeats(config(tmp_path, seeds=2), Trainer())
    with pytest.raises(UserError, match="learning_rate"):
        other = config(tmp_path, seeds=2)
        faster = other.optimizer.model_copy(update={"learning_rate": 1.0})
        run_repeats(other.model_copy(update={"optimizer": faster}), Trainer())
    with pytest.raises(UserError, match="train.seeds: 2 then, None now; train.folds: None then, 3 now"):
        run_repeats(config(tmp_path, folds=3), Trainer())
    Trainer()(config(tmp_path, name="plain"))
    RunDir(tmp_path / "plain").write_text("config.yaml", f"name: plain\nlogging: {{directory: {tmp_path}}}\n")
    with pytest.raises(UserError, match="train.seeds: None then, 2 now"):
        run_repeats(config(tmp_path, name="plain", seeds=2), Trainer())


def test_what_cannot_be_repeated_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected seeds or folds, not both"):
        TrainConfig(seeds=2, folds=2)
    with pytest.raises(ValueError, match="scratch_baseline: not with seeds or folds"):
        TrainConfig(seeds=2, scratch_baseline=True)
    with pytest.raises(UserError, match="from seed=2147483646 on, they reach"):
        repeats(config(tmp_path, seeds=3).model_copy(update={"seed": 2**31 - 2}))
    with pytest.raises(UserError, match="set data.validation=null"):
        repeats(config(tmp_path, folds=2, data={"validation": ROWS}))
    with pytest.raises(UserError, match="task.kind=masked_lm reads a corpus"):
        repeats(config(tmp_path, folds=2).model_copy(update={"task": MaskedLMConfig()}))
    with pytest.raises(UserError, match="expected data.train"):
        repeats(config(tmp_path, folds=2).model_copy(update={"data": DataConfig()}))


def test_out_of_fold_predictions_stand_in_the_order_of_the_rows(tmp_path):
    run_repeats(config(tmp_path, folds=3), Trainer())
    lines = (tmp_path / "x/predictions/out_of_fold.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert ROWS.rows is not None
    assert [row["text"] for row in found] == [row["text"] for row in ROWS.rows if row != SKIPPED]
    assert all(row["prediction"]["label"] == f"fold-{row['fold']}" for row in found)
    assert {row["fold"] for row in found} == {0, 1, 2}
    changed = config(tmp_path, folds=3, data={"train": SourceConfig(rows=ROWS.rows[6:] + ROWS.rows[:6])})
    with pytest.raises(UserError, match="predictions/validation.jsonl: a row of it is not where it was"):
        write_out_of_fold(RunDir(tmp_path / "x"), changed, ("fold-0", "fold-1", "fold-2"))


def test_labels_that_the_folds_dispute_are_listed(tmp_path):
    summary = run_repeats(config(tmp_path, folds=3), Trainer())
    (line,) = map(json.loads, (tmp_path / "x/label_errors.jsonl").read_text().splitlines())
    said = line.pop("label_error")
    assert line == {"text": "text 3", "label": "b"}
    assert said == {
        "place": "data.train.rows, row 4", "given": "b", "suggested": "a", "probability": {"b": 0.05, "a": 0.95},
        "fold": said["fold"],
    }  # fmt: skip
    assert summary["label_errors"] == {"rows": 11, "disputed": 1, "given_to_suggested": {"b -> a": 1}}
    page = (tmp_path / "x/report.html").read_text()
    assert "Likely label errors" in page and "1 of 11 training rows" in page


def test_the_configs_of_the_runs_can_be_read_back(tmp_path):
    for one in repeats(config(tmp_path, folds=2)):
        (tmp_path / "one.yaml").write_text(dump_config(one))
        assert load_config(tmp_path / "one.yaml") == one
