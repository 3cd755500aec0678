"""Sentence embeddings: rows as people write them, what is refused, and runs by the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.corpora import byte_tokenizer
from helpers.embedding_runs import write_embedding
from helpers.finetuning_runs import read_jsonl, run, write_jsonl
from pydantic import ValidationError
from scipy import stats

from jaxlm.config.loading import load_config
from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sentence_modules import KEY, SentenceModules
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.inference.trained import open_trained
from jaxlm.inference.vector_files import check_suffix, write_parquet
from jaxlm.setup.setup import make_setup
from jaxlm.tasks.embedding import Embedding
from jaxlm.tasks.embedding_corpus import EmbeddingSources, open_corpus
from jaxlm.tasks.embedding_report import retrieval_report
from jaxlm.tasks.embedding_rows import EmbeddingConfig
from jaxlm.tasks.embedding_scores import Search
from jaxlm.tasks.records import Answer, Context
from jaxlm.tasks.tagging import Tagging
from jaxlm.training.plan import make_plan

PAIR = ("anchor", "positive")


def table(*rows: dict[str, Any]) -> Table:
    return Table("t.jsonl", tuple(rows[0]), rows, tuple(range(1, len(rows) + 1)))


def make(*rows: dict[str, Any], hf: Any = None, batch_size: int = 8, **settings: Any) -> Embedding:
    context = Context(DataConfig(max_length=32), byte_tokenizer(), hf_config=hf, batch_size=batch_size)
    sources = TableSources({"train": table(*rows)}, {}, ()) if rows else None
    return Embedding.create(EmbeddingConfig(**{"text": PAIR, **settings}), context, sources)


def read(task: Embedding, tokens: np.ndarray) -> str:
    return re.sub("</?s>", "", task.context.tokenizer.decode(tokens))


def roles_and_texts(task: Embedding, *rows: dict[str, Any], labelled: bool = True) -> list[tuple[int, int, str]]:
    found = task.examples(table(*rows), labelled=labelled, key="x").examples
    return [(e.row, e.host.role, read(task, e.tokens)) for e in found]


def test_texts_of_a_row_and_their_prompts():
    row = {"anchor": "a", "positive": "p", "n": "x", "list": ["y", "z"]}
    task = make(negative=("n", "list"), prompts={"anchor": "q: ", "positive": "d: "})
    assert roles_and_texts(task, row) == [
        (0, 0, "q: a"),
        (0, 1, "d: p"),
        (0, 2, "d: x"),
        (0, 2, "d: y"),
        (0, 2, "d: z"),
    ]
    examples = task.examples(table(row, {**row, "anchor": "b"}), labelled=True, key="x").examples
    assert [e.group for e in examples] == [0] * 5 + [1] * 5
    # Equal texts have equal numbers; each carries those of its row's pair.
    assert examples[6].arrays["texts"].tolist() == [1, 5, 1] and examples[1].arrays["texts"].tolist() == [1, 0, 1]


def test_rows_to_be_answered_have_one_text_or_two():
    task = make(prompts={"positive": "d: "})
    assert roles_and_texts(task, {"positive": "p", "id": 3}, labelled=False) == [(0, 0, "d: p")]
    assert roles_and_texts(task, {"text": "t"}, labelled=False) == [(0, 0, "t")]
    both = {"anchor": "a", "positive": "p"}
    assert roles_and_texts(task, both, {**both, "positive": None}, labelled=False) == [
        (0, 0, "a"), (0, 1, "d: p"), (1, 0, "a"),
    ]  # fmt: skip
    assert Embedding.input_columns(task.config, ("id", "positive")) == ("positive",)
    assert Embedding.input_columns(task.config, ("id",)) == ("anchor",)


def test_settings_of_a_checkpoint_hold_where_the_config_is_silent():
    given = SentenceModules("cls", False, {"query": "Q ", "anchor": "A "}, "query", 99, True)
    task = make(hf={KEY: given})
    assert (task.modules.pooling, task.modules.normalize) == ("cls", False)
    assert roles_and_texts(task, {"anchor": "X", "positive": "P"}) == [(0, 0, "a x"), (0, 1, "q p")]
    assert [f.name for f in task.fields] == ["token_types", "roles", "texts", "slot_positions"]
    task = make(hf={KEY: given}, pooling="last_token", normalize=True, prompts={"positive": ""})
    assert (task.modules.pooling, task.modules.normalize) == ("last_token", True)
    [first, second] = task.examples(table({"anchor": "X", "positive": "Pp"}), labelled=True, key="x").examples
    assert first.arrays["slot_positions"] == len(first.tokens) - 1 and second.host.text == "Pp"
    assert read(task, second.tokens) == "pp"
    files = task.hf_files(7)
    assert json.loads(files["1_Pooling/config.json"])["pooling_mode_lasttoken"] is True
    assert json.loads(files["sentence_bert_config.json"]) == {"max_seq_length": 32, "do_lower_case": True}


@pytest.mark.parametrize(
    ("row", "settings", "problem"),
    [
        ({"positive": None}, {}, "positive is missing; expected a text"),
        ({"anchor": "  "}, {}, "anchor is empty"),
        ({"anchor": ["a"]}, {}, "anchor: expected a text, found a list"),
        ({"n": ["x", None]}, {"negative": "n"}, "n: expected a text or a list of texts"),
        ({"n": None}, {"negative": "n"}, "n is missing; expected a text"),
        ({"n": []}, {"negative": "n", "loss": "triplet"}, "n: expected a negative text"),
        ({"s": "high"}, {"label": "s"}, "s='high': expected a number"),
        ({"s": None}, {"label": "s"}, "s=None: expected a number"),
        ({"s": True}, {"label": "s"}, "s=True: expected a number"),
        ({"s": float("nan")}, {"label": "s"}, "s=nan: expected a number"),
        ({"s": 5}, {"label": "s", "loss": "cosine_mse"}, "s=5: expected a score from -1 to 1; set task.score_range"),
        ({"s": 6}, {"label": "s", "score_range": (0, 5)}, "s=6: expected a score from 0 to 5"),
    ],
)  # fmt: skip
def test_bad_rows(row, settings, problem):
    rows = [{"anchor": "a", "positive": "p", "n": "n", "s": 0.5, **extra} for extra in (row, {})]
    with pytest.raises(UserError, match="t.jsonl, row 1") as caught:
        make(**settings).examples(table(*rows), labelled=True, key="x")
    assert problem in str(caught.value)
    skipping = make(**settings)
    skipping.context.data.__dict__["on_bad_row"] = "skip"
    assert {e.row for e in skipping.examples(table(*rows), labelled=True, key="x").examples} == {1}


def test_scores_become_cosines():
    rows = [{"anchor": "a", "positive": "p", "s": s} for s in (0, "2.5", 5.0)]
    assert make(label="s", score_range=(0, 5)).examples(table(*rows), labelled=True, key="x").labels == [0, 0.5, 1]
    assert make(label="s").examples(table(*rows), labelled=True, key="x").labels == [0, 2.5, 5]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"text": ("a", "b", "c")}, "text to be one or two columns, found 3"),
        ({"text": ("a", "a")}, "expected different columns"),
        ({"label": "s", "negative": "n"}, "negative is for pairs without label"),
        ({"loss": "cosent"}, "loss=cosent is for scored pairs"),
        ({"loss": "ranking", "label": "s"}, "loss=ranking is for pairs without label"),
        ({"loss": "triplet"}, "needs the column of negative texts"),
        ({"label": "s", "symmetric": True}, "symmetric is for loss=ranking"),
        ({"score_range": (0, 1)}, "score_range is for scored pairs"),
        ({"label": "s", "score_range": (1, 1)}, "expected score_range to ascend"),
        ({"dimensions": (0,)}, "expected dimensions above 0"),
        ({"prompts": {"query": "q"}}, "'query' is none of the columns"),
    ],
)
def test_settings_that_do_not_fit_each_other(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        EmbeddingConfig(**{"text": PAIR, **settings})


def test_batches_and_splits_without_anything_to_compare_with():
    rows = [{"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "q"}]
    with pytest.raises(UserError, match="train.batch_size=1: task.loss=ranking compares the rows of a batch"):
        make(*rows, batch_size=1)
    with pytest.raises(UserError, match="expected two columns"):
        make(*rows, text="anchor")
    for few in (rows[:1], [rows[0], {**rows[1], "positive": "p"}]):
        with pytest.raises(UserError, match="data.train: a single pair, or always the same 'positive'"):
            make(*few).datasets(EmbeddingSources({"train": table(*few)}, {}, ()))
    with_negative = [{**rows[0], "n": "x"}]
    assert make(*with_negative, negative="n").datasets(EmbeddingSources({"train": table(*with_negative)}, {}, ()))
    with pytest.raises(UserError, match="no column 'positive', which data.train asks for"):
        make(*rows).examples(table({"anchor": "a"}), labelled=True, key="data.train")
    context = Context(DataConfig(), byte_tokenizer(), pool="last")
    with pytest.raises(UserError, match="the first token of this model sees no other"):
        Embedding.create(EmbeddingConfig(pooling="cls"), context, None)


def test_a_corpus_is_searched_too():
    rows = [{"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "q"}]
    data = DataConfig.model_validate({"corpus": {"rows": [{"text": "p"}, {"text": "r"}, {"text": "s"}]}})
    task = make(prompts={"positive": "d: "})
    opened = open_corpus(task.config, data, TableSources({s: table(*rows) for s in ("train", "test")}, {}, PAIR))
    made = task.datasets(opened)
    found = {split: dataset.examples() for split, dataset in made.items()}
    assert [e.row for e in found["train"].examples] == [0, 0, 1, 1]
    assert [e.row for e in found["test"].examples] == [0, 0, 1, 1, 2, 3, 4]
    assert found["test"].labels == [1, 1, None, None, None] and made["test"].describe()["corpus_texts"] == 3
    # The anchors look for p and q among p, q, r and s.
    parts: dict[int, list[Any]] = {}
    for example in found["test"].examples:
        vector = np.eye(4, dtype=np.float32)["apbqrs".index(example.host.text) // 2 + (example.host.text == "s")]
        parts.setdefault(example.row, []).append((example, vector))
    answers = [Answer({}, found["test"].labels[row], task.answer({}, part)) for row, part in parts.items()]
    assert len(Search.of(answers).documents) == 4 and task.scores({}, answers, made["test"])["mrr"] == 1
    assert [row[0] for row in retrieval_report(answers)[0].content["rows"]] == ["1", "2 to 3", "4"]
    scored = EmbeddingConfig(text=PAIR, label="s")
    with pytest.raises(UserError, match=r"data\.corpus: scored pairs are not searched for"):
        open_corpus(scored, data, TableSources({}, {}, PAIR))
    other = DataConfig.model_validate({"corpus": {"rows": [{"body": "p"}]}})
    with pytest.raises(UserError, match="no column 'positive', which data.corpus asks for"):
        open_corpus(task.config, other, opened)
    with pytest.raises(UserError, match=r"data\.corpus: task\.kind=tagging reads labelled rows and does not use it"):
        Tagging.check_data_keys(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Pairs; cut vectors scored, too."""
    folder = tmp_path_factory.mktemp("embedding")
    task = {"dimensions": [8], "symmetric": True, "baselines": True, "prompts": {"anchor": "q: "}}
    config = write_embedding(folder, task, train={"epochs": 8, "batch_size": 16}, data={"max_shapes": 1})
    assert run("finetune", "--config", config) == 0
    return folder


@pytest.mark.slow
def test_a_run_from_training_to_vectors(finished, tmp_path, capsys):
    made = finished / "runs/tiny"
    summary = json.loads((made / "summary.json").read_text())
    scores = summary["scores"]["test"]
    assert summary["metric"] == "ndcg_at_10" and scores["mrr"] > 0.5 > 2 / 11  # of 11 texts in random order, 0.27
    assert {"recall_at_1", "recall_at_10", "ndcg_at_10/8", "mrr/8"} <= scores.keys()
    assert set(summary["baselines"]["tfidf"]) == {"ndcg_at_10", "recall_at_1", "recall_at_10", "mrr"}
    assert "Ranks" in (made / "report.html").read_text() and "Shorter vectors" in (made / "report.html").read_text()
    assert run("evaluate", "--run", made, "--split", "test") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(scores, abs=1e-5)
    # Vectors of the folder that was exported equal those of the run, whatever they are written to.
    rows = [{"anchor": "where is anna", "id": 1}, {"anchor": None, "id": 2}, {"anchor": "where is hugo 7", "id": 3}]
    asked = write_jsonl(tmp_path / "in.jsonl", rows)
    assert run("predict", "--run", made, "--input", asked, "--output", tmp_path / "out.jsonl") == 0
    answered = first, bad, last = read_jsonl(tmp_path / "out.jsonl")
    vectors = np.asarray([first["prediction"]["vector"], last["prediction"]["vector"]], np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert "anchor is missing" in bad["error"]
    with (tmp_path / "out.parquet").open("wb") as file:
        write_parquet(answered, file)
    written = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert written[0]["vector"] == pytest.approx(vectors[0]) and written[1]["vector"] is None
    assert [row["id"] for row in written] == [1, 2, 3] and "anchor is missing" in written[1]["error"]
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"q": "q: where is anna"}, {"q": None}])
    out = tmp_path / "bare.npz"
    assert run("predict", "--run", made / "model", "--text", "q", "--input", bare, "--output", out) == 0
    arrays = np.load(out)
    np.testing.assert_allclose(arrays["vector"][0], vectors[0], atol=1e-5)
    assert np.isnan(arrays["vector"][1]).all() and arrays["error"][0] == "" and "q is missing" in arrays["error"][1]
    assert HFCheckpoint(made / "model").head == "embedding"


def test_packing_changes_no_vector(finished):
    made, vectors = finished / "runs/tiny", []
    for packing in ("true", "false"):
        trained = open_trained(str(made), load_config(made / "config.yaml", [f"data.packing={packing}"]), ("test",))
        evaluation = trained.evaluator.evaluate(trained.params, {}, trained.setup.datasets["test"])
        vectors.append(np.stack([answer.kept.vectors for answer in evaluation.answers]))
    np.testing.assert_allclose(*vectors, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_step_is_the_same_in_one_batch_and_in_micro_batches_on_a_mesh(finished):
    """Without dropout; the candidates of all devices are compared."""
    losses, updated = [], []
    for steps, devices in ((1, jax.devices()[:1]), (2, jax.devices())):
        overrides = [
            "model.dropout=0",
            "model.attention_dropout=0",
            "model.matmul=float32",
            f"train.grad_accum_steps={steps}",
        ]
        config = load_config(finished / "config.yaml", overrides)
        setup = make_setup(config, splits=("train",), devices=devices)
        plan = make_plan(setup)
        state, _ = plan.init_state()
        state, metrics = plan.step(state, plan.to_device(next(plan.loader)))
        plan.loader.close()
        losses.append(float(metrics["loss"]))
        updated.append(jax.device_get(metrics["grad_norm"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and updated[0] == pytest.approx(updated[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cosent", "cosine_mse"])
def test_scored_pairs_by_the_last_token(loss, tmp_path):
    task = {"text": ["anchor", "other"], "label": "score", "score_range": [0, 5], "loss": loss, "pooling": "last_token"}
    config = write_embedding(tmp_path, {**task, "baselines": True}, train={"epochs": 8, "batch_size": 16})
    assert run("finetune", "--config", config) == 0
    made = tmp_path / "runs/tiny"
    summary = json.loads((made / "summary.json").read_text())
    answered = read_jsonl(made / "predictions/test.jsonl")
    cosines, gold = ([row[k] for row in answered] for k in ("prediction", "score"))
    expected = stats.spearmanr([c["score"] for c in cosines], gold)[0]
    assert summary["metric"] == "spearman" and summary["scores"]["test"]["spearman"] == pytest.approx(expected)
    assert ("loss" in summary["scores"]["test"]) == (loss == "cosine_mse") and "tfidf" in summary["baselines"]
    assert "Worst pairs" in (made / "report.html").read_text()


def test_vectors_alone_have_files_of_their_own():
    assert check_suffix("a.npz", vectors=True) == ".npz" and check_suffix("a.csv", vectors=False) is None
    with pytest.raises(UserError, match=r"--output a.npz: \.npz is written for models"):
        check_suffix("a.npz", vectors=False)
