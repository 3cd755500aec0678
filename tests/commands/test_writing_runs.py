"""Tasks that write, by the commands: a decoder learns pairs of words; and what is packed is what it would be alone."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.corpora import byte_tokenizer
from helpers.finetuning_runs import read_jsonl, run
from helpers.t5_models import model_of
from helpers.writing_runs import write_pairs

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import BatchLayout
from jaxlm.data.sources.table import Table
from jaxlm.fields import EXAMPLES
from jaxlm.objectives.cross_entropy import token_scores
from jaxlm.tasks.records import Context
from jaxlm.tasks.text_to_text import TextToText, TextToTextConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run of a decoder, with everything that a user may ask for."""
    folder = tmp_path_factory.mktemp("writing")
    config = write_pairs(
        folder,
        "text_to_text",
        "gpt2",
        train={"batch_size": 16, "epochs": 2, "label_smoothing": 0.1},
        logging={"tensorboard": True},
    )
    assert run("finetune", "--config", config, "task.baselines=true", "task.eval.limit=5", "task.eval.samples=2") == 0
    return folder


@pytest.mark.slow
def test_texts_are_scored_at_every_evaluation_and_all_of_them_at_the_end(folder):
    made = folder / "runs/tiny"
    summary = json.loads((made / "summary.json").read_text())
    assert summary["metric"] == "exact_match" and set(summary["scores"]["test"]) == {
        "exact_match", "f1", "loss", "perplexity", "accuracy",
    }  # fmt: skip
    assert set(summary["baselines"]) == {"copy_source"}
    assert len(read_jsonl(made / "predictions/test.jsonl")) == 9
    samples = read_jsonl(made / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [6, 6, 12, 12]
    assert set(samples[0]) == {"step", "prompt", "text", "reference"}
    report = (made / "report.html").read_text()
    assert "Texts beside their references" in report and "Written" in report and "Scores by length" in report
    [events] = (made / "tensorboard").glob("events*")
    content = events.read_bytes()
    assert b"samples/2" in content and samples[1]["reference"].encode() in content


@pytest.mark.slow
def test_a_finished_run_evaluates_and_predicts(folder, capsys, tmp_path):
    capsys.readouterr()
    assert run("evaluate", "--run", folder / "runs/tiny") == 0
    scores = json.loads((folder / "runs/tiny/summary.json").read_text())["scores"]["test"]
    assert json.loads(capsys.readouterr().out) == pytest.approx(scores, abs=1e-5)
    rows = [{"en": "sun"}, {"en": ""}, {"de": "x"}, {"en": "moon star"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        run(
            "predict",
            "--run",
            folder / "runs/tiny",
            "--input",
            tmp_path / "in.jsonl",
            "--output",
            tmp_path / "out.jsonl",
        )
        == 0
    )
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [row.get("en") for row in found] == ["sun", "", None, "moon star"]
    assert isinstance(found[0]["prediction"]["text"], str) and set(found[3]["prediction"]) == {"text"}
    assert "en is empty; expected a text" in found[1]["error"] and "no column 'en'" in found[2]["error"]


@pytest.mark.slow
def test_an_encoder_decoder_translates_and_its_best_checkpoint_has_the_highest_bleu(tmp_path):
    pytest.importorskip("sacrebleu")
    config = write_pairs(tmp_path, "translation", "t5", train={"batch_size": 16, "epochs": 2})
    assert run("finetune", "--config", config) == 0
    made = tmp_path / "runs/tiny"
    summary = json.loads((made / "summary.json").read_text())
    assert summary["signatures"]["bleu"].startswith("nrefs:")
    assert summary["metric"] == "bleu" and {"bleu", "chrf", "ter", "loss"} <= summary["scores"]["test"].keys()
    assert len(read_jsonl(made / "predictions/test.jsonl")) == 9
    assert json.loads((made / "model/config.json").read_text())["text_to_text"]["template"] == "{source}"
    for name in (made, made / "model"):  # a bare checkpoint reads the column `text`
        (tmp_path / "in.jsonl").write_text(json.dumps({"en" if name == made else "text": "sun"}) + "\n")
        assert run("predict", "--run", name, "--input", tmp_path / "in.jsonl", "--output", tmp_path / name.name) == 0
    [one], [other] = read_jsonl(tmp_path / "tiny"), read_jsonl(tmp_path / "model")
    assert other["prediction"]["text"].startswith(one["prediction"]["text"][:3])  # it may write more tokens


@pytest.mark.slow
def test_a_packed_example_is_what_it_would_be_alone():
    rng = np.random.default_rng(0)
    letters = list("abcdefgh ")
    rows = tuple(
        {
            "input": "x" + "".join(rng.choice(letters, rng.integers(1, 14))),
            "output": "y" + "".join(rng.choice(letters, rng.integers(1, 9))),
        }
        for _ in range(12)
    )
    task = TextToText.create(
        TextToTextConfig(), Context(DataConfig(max_length=24), byte_tokenizer(bos=False), head="seq2seq_lm"), None
    )
    model = model_of(vocab_size=258)
    params = model.init(jax.random.key(0))
    data = task.dataset(Table("t", ("input", "output"), rows, tuple(range(1, 13))), labelled=True, key="k")

    def losses(layout: BatchLayout) -> dict[int, np.ndarray]:
        found = {}
        for batch in data.batches(layout):
            arrays = {name: jnp.asarray(value) for name, value in batch.items() if name != EXAMPLES}
            scores = np.asarray(token_scores(model.apply(params, arrays), arrays["labels"])[0])
            for row, slots in enumerate(batch[EXAMPLES]):
                for slot, example in enumerate(slots):
                    if example >= 0:
                        found[int(example)] = scores[row][batch["decoder_segment_ids"][row] == slot + 1]
        return found

    packed = losses(BatchLayout(max_length=48, row_length=48))
    alone = losses(BatchLayout(max_length=24, packing=False, max_shapes=1))
    assert packed.keys() == alone.keys() == set(range(12))
    for example, expected in alone.items():
        np.testing.assert_allclose(packed[example], expected, atol=2e-5)
