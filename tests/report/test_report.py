"""The page: whole by itself, safe to open, and true to the files it was made of."""

from __future__ import annotations

import json
import re

import pytest
from helpers.html_pages import Page, page_of

from jaxlm.errors import RunFailure, UserError
from jaxlm.report.report import write_report

EVIL = '</td><script>alert("x")</script><img src=http://evil.example/x.png>&amp;'


def make_run(folder, *, summary=None, analysis=None, metrics=None, samples=None, config=None):
    folder.mkdir(exist_ok=True)
    for name, value in (("summary.json", summary), ("analysis.json", analysis)):
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    for name, rows in (("metrics.jsonl", metrics), ("samples.jsonl", samples)):
        if rows is not None:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder


SUMMARY = {
    "name": "sst2-tiny",
    "status": "finished",
    "steps": 40,
    "best_step": 20,
    "metric": "accuracy",
    "metrics": [
        {"name": "accuracy", "higher_is_better": True, "headline": True},
        {"name": "f1", "higher_is_better": True, "headline": True},
        {"name": "recall", "higher_is_better": True, "headline": False},
        {"name": "loss", "higher_is_better": False, "headline": True},
    ],
    "problem": "binary",
    "label_names": ["neg", "pos"],
    "task": {"kind": "classification", "label": "label", "text": ["sentence"]},
    "analysis_split": "test",
    "scores": {
        "test": {"recall": 0.5, "accuracy": 0.8125, "f1": 0.7531, "f1/neg": 0.11},
        "validation": {"accuracy": 0.8642},
    },
    "baselines": {"majority": {"accuracy": 0.5092}, "scratch": {"test": {"accuracy": 0.7}}},
    "data": {"train": {"rows": 67349, "truncated": 3, "cleaned": {"duplicates": 17}}, "test": {"rows": 4}},
    "throughput": {"tokens_per_s": 9021.3, "padding_share": 0.0213, "seconds": 161.2},
    "environment": {"jax": "0.10.2", "devices": ["cpu:0", "cpu:1"]},
    "model": {"family": "bert", "parameters": 22713986, "new_parameters": ["classifier/kernel"]},
    "command": "jaxlm finetune --config a.yaml",
}
ANALYSIS = [
    {"title": "Confusions", "kind": "matrix", "note": "Counts.",
     "content": {"labels": ["neg", "pos"], "counts": [[1, 3], [0, 1200]], "totals": [5, 1200]}},
    {"title": "Shares", "kind": "chart", "note": "Of all.",
     "content": {"series": [{"x": [0, 1], "y": [0.5, 1], "style": "line"}], "axes": {"x": "p", "y": "right"}}},
    {"title": "By label", "kind": "table", "note": "",
     "content": {"columns": ["Label", "F1", "Count"], "rows": [["neg", 0.25, 1234], ["pos", None, 2]], "bars": "F1"}},
    {"title": "Errors", "kind": "texts", "note": "Wrong.",
     "content": {"columns": ["Line", "sentence"], "rows": [[7, "two\nlines"]]}},
]  # fmt: skip
METRICS = [
    {"kind": "train", "step": 10, "loss": 0.7, "learning_rate": 1e-5, "grad_norm": 2.0, "time": 1.0},
    {"kind": "train", "step": 20, "loss": None, "learning_rate": 2e-5, "grad_norm": 1.0, "time": 2.0},
    {"kind": "evaluation", "step": 20, "split": "validation", "accuracy": 0.8642, "loss": 0.5, "time": 2.5},
    {"kind": "train", "step": 40, "loss": 0.4, "learning_rate": 0.0, "grad_norm": 1.5, "time": 3.0},
    {"kind": "evaluation", "step": 40, "split": "validation", "accuracy": 0.8, "loss": 0.6, "time": 3.5},
]
SAMPLES = [{"step": step, "prompt": "the film", "text": f"was {step}"} for step in (10, 20)]
WHOLE = {"summary": SUMMARY, "analysis": ANALYSIS, "metrics": METRICS, "samples": SAMPLES}


@pytest.mark.parametrize(
    ("kind", "problem", "shown"),
    [
        ("classification", "binary", "classification · binary"),
        ("multiple_choice", "multiple choice", "multiple choice"),
        ("embedding", "sentence embeddings", "sentence embeddings"),
        ("tagging", None, "tagging"),
    ],
)
def test_the_task_is_named_once(kind, problem, shown, tmp_path):
    summary = SUMMARY | {"task": {"kind": kind}, "problem": problem}
    text = " ".join(page_of(make_run(tmp_path, summary=summary)).text.split())
    assert f"finished {shown} · " in text


def test_the_page_shows_what_the_files_say(tmp_path):
    page = page_of(make_run(tmp_path, **WHOLE, config="name: sst2-tiny\n"))
    scores = page.table("Metric")
    assert scores[1:] == [
        ["Metric", "validation", "test", "majority", "scratch, test"],
        ["accuracy", "0.8642", "0.8125", "0.5092", "0.7000"],
        ["F1", "–", "0.7531", "–", "–"],
        ["recall", "–", "0.5000", "–", "–"],
    ]
    assert page.table("Split") == [
        ["Split", "rows", "truncated", "cleaned · duplicates"],
        ["train", "67,349", "3", "17"],
        ["test", "4", "–", "–"],
    ]
    assert page.table("tokens/s") == [["tokens/s", "9,021"], ["padding share", "2.1%"], ["time", "2 min 41 s"]]
    assert ["devices", "cpu:0, cpu:1"] in page.table("jax")
    assert ["new parameters", "classifier/kernel"] in page.table("family")
    assert page.table("Step")[1:] == [["20", "the film", "was 20"], ["10", "the film", "was 10"]]
    text = " ".join(page.text.split())
    for part in ("sst2-tiny", "finished", "binary", "22.7 M parameters", "jaxlm finetune --config a.yaml",
                 "The checkpoint of step 20, the best by accuracy.", "name: sst2-tiny"):  # fmt: skip
        assert part in text


def test_sections_of_every_kind(tmp_path):
    run = make_run(tmp_path, **WHOLE)
    page = page_of(run)
    assert page.table("gold")[1:] == [["gold", "neg", "pos"], ["neg", "1", "3"], ["pos", "0", "1,200"]]
    shares = re.findall(r"--share: ([\d.]+)", (run / "report.html").read_text("utf-8"))
    assert shares == ["0.200", "0.600", "0.000", "1.000"]
    assert page.table("Label") == [["Label", "F1", "", "Count"], ["neg", "0.250", "", "1,234"], ["pos", "–", "", "2"]]
    widths = [a[2] for a in page.attributes if a[0] == "span" and a[1] == "style"]
    assert widths == ["width: 1.25rem", "width: 0.00rem"]
    assert page.table("Line") == [["Line", "sentence"], ["7", "two lines"]]
    assert "two\nlines" in page.text
    assert page.tags.count("svg") == 5  # loss, accuracy, learning rate, gradient norm, shares
    text = " ".join(page.text.split())
    order = [text.index(part) for part in ("Predictions on test", "Counts.", "Of all.", "By label", "Wrong.")]
    assert order == sorted(order)


def test_a_long_table_is_folded(tmp_path):
    content = {"columns": ["Label", "n"], "rows": [[f"l{i}", i] for i in range(30)]}
    analysis = [{"title": "Long", "kind": "table", "content": content}]
    page = page_of(make_run(tmp_path, summary=SUMMARY, analysis=analysis))
    tables = [table for table in page.tables if table[0] == ["Label", "n"]]
    assert [len(table) - 1 for table in tables] == [15, 30]
    assert "All 30 rows" in page.text and page.tags.count("details") == 1


def test_nothing_is_loaded_and_nothing_runs(tmp_path):
    evil = SUMMARY | {"name": EVIL, "label_names": ["neg", EVIL], "command": EVIL, "status": EVIL}
    evil |= {"environment": {EVIL: EVIL}, "baselines": {EVIL: {EVIL: 0.5}}, "data": {EVIL: {EVIL: EVIL}}}
    evil |= {"metric": EVIL, "scores": {EVIL: {EVIL: 0.5}}, "problem": EVIL, "analysis_split": EVIL}
    series = [{"x": [0], "y": [0], "style": EVIL, "name": EVIL}]
    contents = {
        "matrix": {"labels": [EVIL], "counts": [[1]]},
        "chart": {"series": series, "axes": {"x": EVIL, "y": EVIL}},
        "table": {"columns": [EVIL, "b"], "rows": [[EVIL, 1]]},
        "texts": {"columns": [EVIL], "rows": [[EVIL]]},
    }
    analysis = [{"title": EVIL, "kind": kind, "note": EVIL, "content": content} for kind, content in contents.items()]
    metrics = [{"kind": "evaluation", "step": 20, "split": "validation", EVIL: 0.5}]
    samples = [{"step": 1, "prompt": EVIL, "text": EVIL}]
    run = make_run(tmp_path, summary=evil, analysis=analysis, metrics=metrics, samples=samples, config=EVIL)
    page = page_of(run)
    assert not {"script", "img", "link", "iframe", "object", "embed", "a", "base", "form"} & set(page.tags)
    loading = ("src", "href", "xlink:href", "action", "srcset", "data", "background", "poster")
    assert not [a for a in page.attributes if a[1] in loading or a[1].startswith("on")]
    assert not [a for a in page.attributes if a[1] == "style" and "url" in a[2]]
    style = re.search(r"<style>(.*?)</style>", (run / "report.html").read_text("utf-8"), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = dict(a[1:] for a in page.attributes if a[0] == "meta")["content"]
    assert "default-src 'none'" in policy
    assert page.text.count(EVIL) >= 28  # shown as it was written


def test_tables_and_charts_can_be_read_by_people_who_cannot_see_them(tmp_path):
    page = page_of(make_run(tmp_path, **WHOLE))
    assert page.tags.count("th") == sum(a[:2] == ("th", "scope") for a in page.attributes)
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == page.tags.count("svg") and all(labels)
    assert "validation loss from 0.5000 to 0.6000" in labels[0]


def test_wide_tables_are_reached_with_the_keyboard(tmp_path):
    page = page_of(make_run(tmp_path, **WHOLE))
    scrolled = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label")]
    assert scrolled == ["Scores", "Confusions", "By label", "Errors", "Samples", "Data"]
    for name, value in (("tabindex", "0"), ("role", "region")):
        assert sum(a == ("div", name, value) for a in page.attributes) == len(scrolled)


@pytest.mark.parametrize(
    ("labels", "whole", "upright"),
    [(["neg", "pos"], False, False), ([f"class {i}" for i in range(8)], True, False),
     ([f"payment_not_received_{i}" for i in range(10)], True, True)],
)  # fmt: skip
def test_a_matrix_takes_the_width_that_its_labels_need(labels, whole, upright, tmp_path):
    content = {"labels": labels, "counts": [[1] * len(labels)] * len(labels)}
    page = page_of(make_run(tmp_path, summary=SUMMARY, analysis=[{**ANALYSIS[0], "content": content}]))
    classes = [value.split() for tag, name, value in page.attributes if (tag, name) == ("table", "class")]
    assert classes[0] == ["matrix", *(["upright"] if upright else [])]
    assert (("div", "class", "whole") in page.attributes) == whole


def test_the_same_files_give_the_same_bytes(tmp_path):
    run = make_run(tmp_path, **WHOLE)
    before = sorted(p.name for p in run.iterdir())
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(p.name for p in run.iterdir()) == sorted([*before, "report.html"])


def test_scores_alone_make_a_page(tmp_path):
    page = page_of(make_run(tmp_path, summary=SUMMARY))
    assert page.table("Metric")[2][:3] == ["accuracy", "0.8642", "0.8125"]
    assert "Predictions" not in page.text and "Samples" not in page.text


def test_a_run_that_is_not_finished_shows_its_best_evaluation_so_far(tmp_path):
    page = page_of(make_run(tmp_path / "early", metrics=METRICS))
    assert "early" in page.text and "unfinished" in page.text
    assert page.table("Metric")[1:] == [["loss", "0.5000"], ["accuracy", "0.8642"]]
    assert "step 20, the best by loss (lower is better)" in " ".join(page.text.split())


def test_a_run_without_validation_is_that_of_its_last_step(tmp_path):
    scores = {"test": {"accuracy": 0.5}}
    page = page_of(make_run(tmp_path, summary=SUMMARY | {"metric": None, "best_step": None, "scores": scores}))
    assert "The parameters of the last step." in page.text
    assert "test accuracy" in page.text


def test_the_metrics_say_which_evaluation_is_best(tmp_path):
    errors = [{"name": "errors", "higher_is_better": False, "headline": True}]
    metrics = [r | {"errors": 5 - r["step"] / 40} if r["kind"] == "evaluation" else r for r in METRICS]
    page = page_of(make_run(tmp_path, summary={"name": "a", "metrics": errors}, metrics=metrics))
    assert "step 40, the best by errors (lower is better)" in " ".join(page.text.split())


@pytest.mark.parametrize("part", sorted(SUMMARY))
def test_any_part_of_the_summary_may_be_missing(tmp_path, part):
    summary = {key: value for key, value in SUMMARY.items() if key != part}
    page_of(make_run(tmp_path, summary=summary, analysis=ANALYSIS, metrics=METRICS))


def test_half_a_surrogate_pair_does_not_break_the_page(tmp_path):
    content = {"columns": ["t"], "rows": [["a\ud800b"]]}
    analysis = [{"title": "T", "kind": "texts", "content": content}]
    run = make_run(tmp_path, summary=SUMMARY | {"command": "echo \udcff"}, analysis=analysis)
    Page(write_report(run).read_text("utf-8"))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json or metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"summary\.json: expected JSON"):
        write_report(tmp_path)
    make_run(tmp_path, summary=SUMMARY)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunFailure, match=r"report\.html: cannot be written"):
        write_report(tmp_path)
