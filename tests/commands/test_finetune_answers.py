"""Question answering by the commands: a small run, its scores, predictions, report and export."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from helpers.finetuning_runs import read_jsonl, run, write_config

from jaxlm.inference.trained import open_trained, run_config

NAMES = ["Ada", "Grace", "Alan", "Emmy", "Kurt", "Sofia"]
PLACES = ["Paris", "Zürich 🙂", "北京", "ירושלים", "Sa\u0303o"]
FILLER = ["the", "old", "house", "was", "sold;", "rain\tfell", "again,\r\n", "and", "nobody", "came."]


def questions(number: int, seed: int, *, no_answer: bool) -> list[dict]:
    """Who lived where: the answer stands behind the name that is asked for, in long and in short contexts."""
    rng = random.Random(seed)
    made = []
    for i in range(number):
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        words = [rng.choice(FILLER) for _ in range(rng.choice([3, 8, 40]))]
        words.insert(rng.randint(0, len(words)), f"{name} lived in {place} then.")
        context = " ".join(words)
        answer = {"text": place, "answer_start": context.index(place)}
        made.append(
            {"id": f"{seed}-{i}", "question": f"Where did {name} live?", "context": context, "answers": [answer]}
        )
        if no_answer and i % 3 == 0:
            made[-1] |= {"question": "Who sold the horse?", "answers": [], "is_impossible": True}
    return made


def write_squad(path, rows) -> None:
    qas = [{"context": row["context"], "qas": [{k: v for k, v in row.items() if k != "context"}]} for row in rows]
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": qas}]}), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa")
    for seed, (name, number) in enumerate({"train": 48, "validation": 20, "test": 20}.items()):
        write_squad(folder / f"{name}.json", questions(number, seed, no_answer=True))
    config = write_config(
        folder,
        task={"kind": "question_answering", "n_best": 2, "baselines": True, "text": None, "label": None},
        data={
            name: {"path": str(folder / f"{name}.json"), "format": "squad"} for name in ("train", "validation", "test")
        }
        | {"max_length": 40, "stride": 8, "max_shapes": 1, "row_length": 80},
        model={"train_tokenizer": {"vocab_size": 300, "lowercase": False}},
        train={"epochs": 1},
    )
    text = config.read_text().replace("  text: null\n", "").replace("  label: null\n", "")
    config.write_text(text)
    assert run("finetune", "--config", config) == 0
    return folder


def test_run(folder):
    """Scores, the tuned threshold in the export, predictions in the order of the rows, sections of the report."""
    directory = folder / "runs/tiny"
    summary = json.loads((directory / "summary.json").read_text())
    scores = summary["scores"]["validation"]
    assert set(scores) == {"loss", "f1", "exact_match", "best_f1", "best_exact_match", "has_answer_f1", "no_answer_f1",
                           "has_answer_exact_match", "no_answer_exact_match"}  # fmt: skip
    assert summary["metric"] == "best_f1" and scores["f1"] == pytest.approx(scores["best_f1"])
    assert all(0 <= value <= 1 for name, value in scores.items() if name != "loss")
    assert summary["data"]["train"]["truncated"] > 0 and summary["data"]["train"]["windows"] > 48
    assert {"no answer", "sentence most like the question"} <= set(summary["baselines"])
    exported = json.loads((directory / "model/config.json").read_text())
    assert exported["architectures"] == ["BertForQuestionAnswering"]
    assert exported["question_answering"]["no_answer"] and exported["question_answering"]["scoring"] == "squad"
    assert exported["question_answering"]["threshold"] == summary["task"]["threshold"] != 0
    rows = read_jsonl(directory / "predictions/test.jsonl")
    assert [row["id"] for row in rows] == [f"2-{i}" for i in range(20)]
    for row in rows:
        prediction = row["prediction"]
        assert prediction["answer"] == row["context"][prediction["start"] : prediction["end"]]
        assert len(prediction["n_best"]) == 2 and prediction["n_best"][0].items() <= prediction.items()
        assert 0 < prediction["score"] <= 1
    titles = [section["title"] for section in json.loads((directory / "analysis.json").read_text())]
    assert "F1 by threshold" in titles and "Scores by question word" in titles
    assert "Worst answers" in (directory / "report.html").read_text()


def test_packed_is_unpacked(folder):
    """Per window, and so per question."""
    directory = folder / "runs/tiny"
    kept = {}
    for packing in ("true", "false"):
        config = run_config(str(directory), [f"data.packing={packing}", "data.train=null", "data.test=null"])
        trained = open_trained(str(directory), config, ("validation",))
        dataset = trained.setup.datasets["validation"]
        evaluation = trained.evaluator.evaluate(*trained.parts, dataset)
        kept[packing] = [answer.kept for answer in evaluation.answers], evaluation.scores
    assert kept["true"][1] == pytest.approx(kept["false"][1], abs=1e-5)
    for packed, alone in zip(*(answers for answers, _ in kept.values()), strict=True):
        np.testing.assert_allclose(packed.null, alone.null, atol=1e-5)
        scores = {span[1:]: span.score for span in alone.spans}
        for span in packed.spans[:5]:
            assert scores[span[1:]] == pytest.approx(span.score, abs=1e-5)


def test_predict_without_answers(folder, capsys):
    """Rows of question and context alone; a SQuAD file; bad rows get an error; order and other columns are kept."""
    model = folder / "runs/tiny/model"
    rows = [
        {"question": "Where?", "context": f"😀 {'x ' * 60}Ada lived in Zürich 🙂 then.\r\n", "other": [1]},
        {"question": "Where?", "context": None},
        {"question": "why " * 60, "context": "It was so " * 9},
        {"question": "Where?", "context": ""},
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert (
        run("predict", "--run", folder / "runs/tiny", "--input", folder / "in.jsonl", "--output", folder / "out.jsonl")
        == 0
    )
    found = read_jsonl(folder / "out.jsonl")
    prediction = found[0]["prediction"]
    assert (
        found[0]["other"] == [1] and prediction["answer"] == rows[0]["context"][prediction["start"] : prediction["end"]]
    )
    assert (
        "context is missing" in found[1]["error"] and "tokens and leaves 0 of data.max_length=40" in found[2]["error"]
    )
    assert found[3]["prediction"]["answer"] == ""
    assert run("predict", "--run", model, "--input", folder / "test.json", "--output", folder / "all.jsonl") == 0
    expected = [row["prediction"] for row in read_jsonl(folder / "runs/tiny/predictions/test.jsonl")]
    found = [row["prediction"] for row in read_jsonl(folder / "all.jsonl")]
    assert len(found) == len(expected) and all("n_best" not in row for row in found)
    capsys.readouterr()
    assert run("evaluate", "--run", folder / "runs/tiny", "--data", folder / "test.json") == 0
    scores = json.loads((folder / "runs/tiny/summary.json").read_text())["scores"]["test"]
    assert json.loads(capsys.readouterr().out) == pytest.approx(scores, abs=1e-6)


@pytest.mark.parity
def test_export_answers_alike_in_transformers(folder):
    """Its tokenizer makes the same windows, its model the same logits; so the best spans and "no answer" agree.

    But for a combining mark, which Transformers' offsets leave out of its letter's token.
    """
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    model = AutoModelForQuestionAnswering.from_pretrained(folder / "runs/tiny/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs/tiny/model")
    threshold = model.config.question_answering["threshold"]
    for row in read_jsonl(folder / "runs/tiny/predictions/test.jsonl"):
        inputs = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=40, stride=8, padding=True,
            return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        offsets, kinds = (
            inputs.pop("offset_mapping").numpy(),
            [inputs.sequence_ids(i) for i in range(len(inputs["input_ids"]))],
        )
        inputs.pop("overflow_to_sample_mapping")
        with torch.no_grad():
            outputs = model(**inputs)
        best, null = (-np.inf, ""), np.inf
        for i, (start, end) in enumerate(zip(outputs.start_logits.numpy(), outputs.end_logits.numpy(), strict=True)):
            null = min(null, float(start[0] + end[0]))
            context = [k for k, kind in enumerate(kinds[i]) if kind == 1]
            for s in context:
                for e in context:
                    if s <= e < s + 30 and start[s] + end[e] > best[0]:
                        best = float(start[s] + end[e]), row["context"][offsets[i, s, 0] : offsets[i, e, 1]]
        assert row["prediction"]["answer"].replace("\u0303", "") == (
            "" if null - best[0] > threshold else best[1].replace("\u0303", "")
        )
