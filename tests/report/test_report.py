"""The report: a page that is whole by itself, safe to open, and true to the files it was made of."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxlm.errors import RunFailure, UserError
from jaxlm.report.charts import Series, chart, smooth, ticks
from jaxlm.report.report import write_report
from jaxlm.tasks.classification_report import calibration, excerpt, read_predictions, top_confusions, worst_errors

EVIL = '</td><script>alert("x")</script><img src=http://evil.example/x.png>&amp;'
VOID = {"meta", "br", "hr", "img", "link", "input", "circle", "line", "polyline"}


class Page(HTMLParser):
    """Elements, attributes and tables of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.tables, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open[-3:]):
            self.tables[-1][-1][-1] += data

    def table(self, *header):
        """The rows of the one table that has a row starting with these cells, as stripped text."""
        rows = [[[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables]
        (found,) = [table for table in rows if any(tuple(row[: len(header)]) == header for row in table)]
        return found


def make_run(folder, *, summary=None, predictions=None, metrics=None, config=None):
    folder.mkdir(exist_ok=True)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if metrics is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if config is not None:
        (folder / "config.yaml").write_text(config)
    for split, rows in (predictions or {}).items():
        (folder / "predictions").mkdir(exist_ok=True)
        (folder / "predictions" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page_of(run_dir):
    return Page(write_report(run_dir).read_text("utf-8"))


def predicted(text, gold, **scores):
    return {
        "sentence": text,
        "label": gold,
        "prediction": {"label": max(scores, key=lambda name: scores[name]), "scores": scores},
    }


BINARY = {
    "name": "sst2-tiny",
    "status": "finished",
    "steps": 40,
    "best_step": 20,
    "metric": "accuracy",
    "problem": "binary",
    "label_names": ["neg", "pos"],
    "task": {"label": "label", "text": ["sentence"]},
    "scores": {"test": {"accuracy": 0.8125, "f1": 0.7531, "f1/neg": 0.11}, "validation": {"accuracy": 0.8642}},
    "baselines": {"majority": {"accuracy": 0.5092}},
    "data": {"train": {"rows": 67349, "truncated": 3, "cleaned": {"duplicates": 17}}, "test": {"rows": 4}},
    "throughput": {"tokens_per_s": 9021.3, "padding_share": 0.0213, "seconds": 161.2},
    "environment": {"jax": "0.10.2", "devices": ["cpu:0", "cpu:1"]},
    "model": {"family": "bert", "parameters": 22713986, "new_parameters": ["classifier/kernel"]},
    "command": "jaxlm finetune --config a.yaml",
}
ROWS = [
    predicted("fine", "pos", neg=0.1, pos=0.9),
    predicted("surely wrong", "neg", neg=0.05, pos=0.95),
    predicted("nearly right", "pos", neg=0.6, pos=0.4),
    predicted("bad", "neg", neg=0.7, pos=0.3),
]
METRICS = [
    {"kind": "train", "step": 10, "loss": 0.7, "learning_rate": 1e-5, "grad_norm": 2.0, "time": 1.0},
    {"kind": "train", "step": 20, "loss": None, "learning_rate": 2e-5, "grad_norm": 1.0, "time": 2.0},
    {"kind": "evaluation", "step": 20, "split": "validation", "accuracy": 0.8642, "loss": 0.5, "time": 2.5},
    {"kind": "train", "step": 40, "loss": 0.4, "learning_rate": 0.0, "grad_norm": 1.5, "time": 3.0},
    {"kind": "evaluation", "step": 40, "split": "validation", "accuracy": 0.8, "loss": 0.6, "time": 3.5},
]


def test_the_page_shows_what_the_files_say(tmp_path):
    run = make_run(tmp_path, summary=BINARY, predictions={"test": ROWS}, metrics=METRICS, config="name: sst2-tiny\n")
    page = page_of(run)
    scores = page.table("Metric")
    assert scores[1] == ["Metric", "validation", "test", "majority"]
    assert scores[2] == ["accuracy", "0.8642", "0.8125", "0.5092"]
    assert ["F1", "–", "0.7531", "–"] in scores
    assert page.table("gold")[1:] == [["gold", "neg", "pos"], ["neg", "1", "1"], ["pos", "1", "1"]]
    assert page.table("Label")[1:] == [
        ["neg", "0.500", "0.500", "0.500", "", "2", "2"],
        ["pos", "0.500", "0.500", "0.500", "", "2", "2"],
    ]
    assert [row[:6] for row in page.table("Line")[1:]] == [
        ["2", "surely wrong", "neg", "pos", "0.950", "0.050"],
        ["3", "nearly right", "pos", "neg", "0.600", "0.400"],
    ]
    assert page.table("Split") == [
        ["Split", "rows", "truncated", "cleaned · duplicates"],
        ["train", "67,349", "3", "17"],
        ["test", "4", "–", "–"],
    ]
    assert page.table("tokens/s") == [["tokens/s", "9,021"], ["padding share", "2.1%"], ["time", "2 min 41 s"]]
    assert ["devices", "cpu:0, cpu:1"] in page.table("jax")
    assert ["new parameters", "classifier/kernel"] in page.table("family")
    for text in ("sst2-tiny", "finished", "22.7 M parameters", "jaxlm finetune --config a.yaml", "2 of them wrong"):
        assert text in " ".join(page.text.split())
    assert page.tags.count("svg") == 5  # loss, accuracy, learning rate, gradient norm, calibration


def test_nothing_is_loaded_and_nothing_runs(tmp_path):
    evil = BINARY | {"name": EVIL, "label_names": ["neg", EVIL], "command": EVIL, "status": EVIL}
    evil |= {"environment": {EVIL: EVIL}, "baselines": {EVIL: {EVIL: 0.5}}, "data": {EVIL: {EVIL: EVIL}}}
    evil |= {"metric": EVIL, "scores": {EVIL: {EVIL: 0.5}}, "task": {"label": "label", "text": [EVIL]}}
    rows = [predicted("", "neg", **{"neg": 0.1, EVIL: 0.9}) | {EVIL: EVIL}]
    metrics = [{"kind": "evaluation", "step": 20, "split": "validation", EVIL: 0.5}]
    run = make_run(tmp_path, summary=evil, predictions={"test": rows}, metrics=metrics, config=EVIL)
    page = page_of(run)
    assert not {"script", "img", "link", "iframe", "object", "embed", "a", "base", "form"} & set(page.tags)
    loading = ("src", "href", "xlink:href", "action", "srcset", "data", "background", "poster")
    assert not [a for a in page.attributes if a[1] in loading or a[1].startswith("on")]
    assert not [a for a in page.attributes if a[1] == "style" and "url" in a[2]]
    style = re.search(r"<style>(.*?)</style>", write_report(run).read_text("utf-8"), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = dict(a[1:] for a in page.attributes if a[0] == "meta")["content"]
    assert "default-src 'none'" in policy
    assert page.text.count(EVIL) >= 12  # shown as it was written


def test_tables_and_charts_say_what_they_are_to_those_who_do_not_see_them(tmp_path):
    run = make_run(tmp_path, summary=BINARY, predictions={"test": ROWS}, metrics=METRICS)
    page = page_of(run)
    assert page.tags.count("th") == sum(a[:2] == ("th", "scope") for a in page.attributes)
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == page.tags.count("svg") and all(labels)
    assert "validation loss from 0.5000 to 0.6000" in labels[0]


def test_the_same_files_give_the_same_bytes(tmp_path):
    run = make_run(tmp_path, summary=BINARY, predictions={"test": ROWS}, metrics=METRICS)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(p.name for p in run.iterdir()) == ["metrics.jsonl", "predictions", "report.html", "summary.json"]


def test_without_predictions_the_scores_are_still_there(tmp_path):
    page = page_of(make_run(tmp_path, summary=BINARY))
    assert page.table("Metric")[2] == ["accuracy", "0.8642", "0.8125", "0.5092"]
    assert "Worst errors" not in page.text


def test_a_run_that_is_not_finished_shows_its_best_evaluation_so_far(tmp_path):
    page = page_of(make_run(tmp_path / "early", metrics=METRICS))
    assert "early" in page.text and "unfinished" in page.text
    assert page.table("Metric")[1] == ["accuracy", "0.8642"]
    assert "step 20" in page.text


@pytest.mark.parametrize("part", sorted(BINARY))
def test_any_part_of_the_summary_may_be_missing(tmp_path, part):
    summary = {key: value for key, value in BINARY.items() if key != part}
    page_of(make_run(tmp_path, summary=summary, predictions={"test": ROWS}, metrics=METRICS))


def test_validation_predictions_serve_where_test_has_no_gold_labels(tmp_path):
    unlabelled = [{k: v for k, v in row.items() if k != "label"} for row in ROWS]
    run = make_run(tmp_path, summary=BINARY, predictions={"test": unlabelled, "validation": [*ROWS, unlabelled[0]]})
    page = page_of(run)
    assert "Predictions on validation" in page.text
    assert "1 more rows have no gold label" in page.text


def test_regression(tmp_path):
    summary = BINARY | {"problem": "regression", "label_names": [], "metric": "spearman", "scores": {}}
    rows = [
        {"sentence": f"t{i}", "label": float(i), "prediction": {"score": i + (2.5 if i == 3 else 0.1)}}
        for i in range(5)
    ]
    page = page_of(make_run(tmp_path, summary=summary, predictions={"test": rows}))
    assert page.tags.count("circle") == 5
    assert page.table("Line")[1] == ["4", "t3", "3", "5.5", "+2.5"]


def test_multilabel(tmp_path):
    summary = BINARY | {"problem": "multilabel", "label_names": ["a", "b"], "metric": "f1_micro", "scores": {}}
    rows = [
        {"sentence": "x", "label": ["a", "b"], "prediction": {"labels": ["a"], "scores": {"a": 0.9, "b": 0.2}}},
        {"sentence": "y", "label": [], "prediction": {"labels": [], "scores": {"a": 0.1, "b": 0.4}}},
    ]
    page = page_of(make_run(tmp_path, summary=summary, predictions={"test": rows}))
    assert page.table("Line")[1:] == [["1", "x", "a, b", "a", "b", "0.200"]]
    assert page.table("Label")[1:] == [
        ["a", "1.000", "1.000", "1.000", "", "1", "1"],
        ["b", "0.000", "0.000", "0.000", "", "1", "0"],
    ]


def test_many_labels_give_the_top_confusions_instead_of_a_matrix(tmp_path):
    names = [f"l{i}" for i in range(30)]
    rows = [predicted("t", "l3", **{n: 0.5 if n == "l7" else 0.01 for n in names})] * 2
    rows += [predicted("t", n, **{m: 0.5 if m == n else 0.01 for m in names}) for n in names]
    summary = BINARY | {"problem": "multiclass", "label_names": names}
    page = page_of(make_run(tmp_path, summary=summary, predictions={"test": rows}))
    assert page.table("Gold", "Predicted")[1:] == [["l3", "l7", "2", "66.7%"]]
    assert "All 30 labels" in page.text


def test_half_a_surrogate_pair_and_control_characters_do_not_break_the_page(tmp_path):
    rows = [predicted("a\ud800b\x00c", "pos", neg=0.9, pos=0.1)]
    run = make_run(tmp_path, summary=BINARY | {"command": "echo \udcff"}, predictions={"test": rows})
    text = write_report(run).read_text("utf-8")
    assert "\x00" not in text
    Page(text)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json or metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"summary\.json: expected JSON"):
        write_report(tmp_path)
    make_run(tmp_path, summary=BINARY)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunFailure, match=r"report\.html: cannot be written"):
        write_report(tmp_path)


# --- predictions


def read(tmp_path, rows, problem="multiclass", labels=("a", "b"), **kwargs):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_predictions(path, problem, labels, ["sentence"], "label", **kwargs)
    assert found is not None
    return found


def test_gold_labels_may_be_names_or_ids_and_names_come_first(tmp_path):
    rows = [predicted("t", gold, a=0.9, b=0.1) for gold in ("a", 1, "1", True)]
    assert read(tmp_path, rows).gold.tolist() == [0, 1, 1, 1]
    rows = [predicted("t", gold, **{"1": 0.9, "0": 0.1}) for gold in (0, "0", 1)]
    assert read(tmp_path, rows, labels=("1", "0")).gold.tolist() == [1, 1, 0]


def test_rows_that_cannot_be_scored_are_counted_not_guessed(tmp_path):
    rows = [predicted("t", gold, a=0.9, b=0.1) for gold in ("a", "c", 2, -1, 0.5, None, "")] + [{"label": "a"}]
    p = read(tmp_path, rows)
    assert (len(p), p.skipped) == (1, 7)
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[-1]) + "\n")
    assert read_predictions(tmp_path / "test.jsonl", "multiclass", ("a", "b"), ["sentence"], "label") is None


def test_multilabel_gold_may_be_one_string(tmp_path):
    prediction = {"labels": [], "scores": {"a": 0.1, "b": 0.1}}
    rows = [{"label": gold, "prediction": prediction} for gold in ("a|b", "b", "", ["a"])]
    p = read(tmp_path, rows, problem="multilabel", label_separator="|")
    assert p.gold.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]


def test_worst_errors_come_most_confident_first(tmp_path):
    rows = [predicted(f"t{i}", "a", a=1 - p, b=p) for i, p in enumerate((0.6, 0.99, 0.2, 0.7))]
    errors = worst_errors(read(tmp_path, rows))
    assert [e["texts"] for e in errors] == [("t1",), ("t3",), ("t0",)]
    assert errors[0]["gold_probability"] == pytest.approx(0.01)
    assert len(worst_errors(read(tmp_path, rows), count=2)) == 2


def test_calibration_by_hand(tmp_path):
    # bin .6-.7: .62 wrong, .66 right; bin .9-1: .95 right, 1.0 right
    rows = [predicted("t", g, a=p, b=1 - p) for p, g in ((0.62, "b"), (0.66, "a"), (0.95, "a"), (1.0, "a"))]
    confidence, accuracy, error = calibration(read(tmp_path, rows))
    assert confidence == pytest.approx([0.64, 0.975])
    assert accuracy == pytest.approx([0.5, 1.0])
    assert error == pytest.approx(0.5 * 0.14 + 0.5 * 0.025)


def test_top_confusions():
    matrix = np.array([[5, 1, 0], [3, 0, 0], [0, 2, 2]])
    found = [(r["gold"], r["predicted"], r["count"], r["share"]) for r in top_confusions(matrix, "abc", count=2)]
    assert found == [("b", "a", 3, 1.0), ("c", "b", 2, 0.5)]


def test_excerpts_are_cut_at_a_word():
    cut = excerpt("word " * 100)
    assert len(cut) < 300 and cut.endswith("word …")
    assert len(excerpt("字" * 1000)) < 300
    assert excerpt("short\nline") == "short\nline"


# --- charts


def points(svg, style):
    found = re.findall(rf'<polyline class="{style}" points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]


def draw(x, y, **kwargs):
    series = Series(np.array(x, float), np.array(y, float), "line-1")
    return str(chart([series], alt="alt", x_label="x", y_label="y", **kwargs))


def test_greater_values_stand_higher_and_further_right():
    ((p, q, r),) = points(draw([0, 10, 20], [1, 3, 2]), "line-1")
    assert p[0] < q[0] < r[0] and q[0] - p[0] == pytest.approx(r[0] - q[0], abs=0.2)
    assert q[1] < r[1] < p[1]  # y runs downwards in SVG


def test_a_line_breaks_where_a_value_is_not_finite():
    svg = draw([0, 1, 2, 3, 4], [1, 2, math.nan, 3, 4])
    assert [len(line) for line in points(svg, "line-1")] == [2, 2]
    assert "nan" not in svg


@pytest.mark.parametrize("y", [[1.0, 1.0], [0.0, 0.0], [5.0], [math.nan, math.nan], [1e-300, 2e-300], [-3.0, 1e6]])
def test_degenerate_ranges_are_drawn(y):
    svg = draw(range(len(y)), y)
    assert "nan" not in svg and "inf" not in svg


def test_a_long_line_is_thinned_but_keeps_its_extremes():
    y = np.zeros(50_000)
    y[12_345], y[40_000] = 9, -9
    (line,) = points(draw(range(50_000), y), "line-1")
    (short,) = points(draw(range(3), [0, 9, -9]), "line-1")
    assert len(line) <= 600
    assert min(p[1] for p in line) == short[1][1] and max(p[1] for p in line) == short[2][1]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2105), (0.64, 0.87), (-3, 17), (0, 5e-5), (1e6, 1.1e6)])
def test_ticks_are_few_round_and_inside(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 7
    assert low - 1e-9 * high <= values[0] and values[-1] <= high * (1 + 1e-9)
    step = values[1] - values[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)
    assert all(abs(v / step - round(v / step)) < 1e-6 for v in values)


def test_smoothing_keeps_a_constant_follows_a_trend_and_passes_over_nan():
    assert smooth(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    noisy = np.linspace(1, 0, 400) + np.where(np.arange(400) % 2, 0.5, -0.5)
    smoothed = smooth(noisy)
    assert np.abs(smoothed[50:] - np.linspace(1, 0, 400)[50:]).max() < 0.1
    gap = smooth(np.array([1.0, math.nan, 1.0]))
    assert gap == pytest.approx([1, 1, 1])
