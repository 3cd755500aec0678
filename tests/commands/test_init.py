"""`jaxlm init`: from a file to a config that runs, whatever the file is like; the shipped configs as templates."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.finetuning_runs import rows as classified
from helpers.finetuning_runs import run, write_jsonl
from helpers.paths import REPOSITORY

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.tasks import TASKS

RNG = random.Random(0)
WORDS = [f"word{i}" for i in range(300)]


def words(count: int) -> str:
    return " ".join(RNG.choices(WORDS, k=count))


def csv_of(mark: str, lines: list[list[str]]) -> str:
    return "".join(mark.join(line) + "\n" for line in lines)


def questions(form: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"question": words(5), "id": str(i), **form, "label": i % 2} for i in range(24)]


def squad() -> str:
    contexts = [words(30) for _ in range(24)]
    paragraphs = [
        {
            "context": text,
            "qas": [{"id": text, "question": words(4), "answers": [{"text": text[:5], "answer_start": 0}]}],
        }
        for text in contexts
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def conll() -> str:
    return "".join("".join(f"{word} X B-{i % 2}\n" for word in words(6).split()) + "\n" for i in range(24))


FILES: dict[str, tuple[str, bytes | str | list[dict[str, Any]], dict[str, Any]]] = {
    # name: (file, content, what the section task holds and, under "train", what data.train does)
    "a semicolon file of German, not in UTF-8": (
        "kritik.csv",
        csv_of(";", [["nr", "text", "urteil"], *([str(i), f"schön, für {words(6)}", "gut" if i % 3 else "schlecht"]
                                                 for i in range(24))]).encode("cp1252"),
        {"text": "text", "label": "urteil", "train": {"separator": ";", "encoding": "cp1252"}},
    ),
    "Chinese, not in UTF-8": (
        "zh.tsv",
        csv_of(
            "\t", [["text", "label"], *([f"这是第{i}条评论，写得很好", "好" if i % 2 else "差"] for i in range(24))]
        ).encode("gb18030"),
        {"text": "text", "label": "label", "train": {"encoding": "gb18030"}},
    ),
    "no header": (
        "x.tsv",
        csv_of("\t", [[words(7), str(i % 2)] for i in range(24)]),
        {"kind": "classification", "text": "text", "label": "label", "train": {"columns": ("text", "label")}},
    ),
    "no header, and columns that are no labels": (
        "cola.tsv",
        csv_of("\t", [["gj04", str(i % 2), "*" if i % 2 else "", f'He "said {words(8)}'] for i in range(40)]),
        {"text": "text", "label": "label", "train": {"columns": ("column1", "label", "column3", "text")}},
    ),
    "no header, and a label that headers have, too": (
        "x.tsv",
        csv_of("\t", [[words(20), "positive" if i % 3 else "negative"] for i in range(1, 25)]),
        {"text": "text", "label": "label", "train": {"columns": ("text", "label")}},
    ),
    "a name that tells nothing": (
        "reviews.data",
        csv_of(",", [["review", "stars"], *([words(8), str(i % 5)] for i in range(40))]),
        {"kind": "classification", "text": "review", "label": "stars", "train": {"format": "csv"}},
    ),
    "pairs": (
        "p.jsonl",
        [{"premise": words(6), "hypothesis": words(6), "label": i % 3} for i in range(24)],
        {"kind": "classification", "text": ("premise", "hypothesis"), "label": "label"},
    ),
    "scores": (
        "s.jsonl",
        [{"text": words(6), "score": i / 7} for i in range(24)],
        {"kind": "classification", "problem": "regression", "label": "score"},
    ),
    "lists of labels": (
        "m.jsonl",
        [{"text": words(6), "topics": ["a", "b"][: 1 + i % 2]} for i in range(24)],
        {"kind": "classification", "label": "topics", "label_separator": None},
    ),
    "labels between marks": (
        "m.csv",
        csv_of(",", [["text", "tags"], *([words(6), "a;b" if i % 2 else "c"] for i in range(24))]),
        {"kind": "classification", "label": "tags", "label_separator": ";"},
    ),
    "sentences of three columns": (
        "ner.conll",
        conll(),
        {"kind": "tagging", "train": {"columns": ("tokens", "column2", "tags")}},
    ),
    "SQuAD": ("q.json", squad(), {"kind": "question_answering"}),
    "candidates": (
        "c.jsonl",
        questions({"choices": ["one", "other"]}),
        {"kind": "multiple_choice", "choices": "choices"},
    ),
    "a column to a candidate": (
        "c.jsonl",
        questions({"a": "x y", "b": "z"}),
        {"kind": "multiple_choice", "choices": ("a", "b")},
    ),
    "two languages": (
        "t.jsonl",
        [{"en": words(5), "de": words(5)} for _ in range(24)],
        {"kind": "translation", "source": "en"},
    ),
    "summaries": (
        "d.jsonl",
        [{"document": words(60), "summary": words(5)} for _ in range(24)],
        {"kind": "summarization", "source": "document", "target": "summary"},
    ),
    "summaries of lists of sentences": (
        "d.jsonl",
        [{"title": words(5), "source": [words(20), words(20)], "target": [words(6), words(5)]} for _ in range(24)],
        {"kind": "summarization", "source": "source", "target": "target"},
    ),
    "searches": ("e.jsonl", [{"query": words(4), "positive": words(9)} for _ in range(24)], {"kind": "embedding"}),
    "texts to texts": (
        "w.jsonl",
        [{"spoken": words(9), "written": words(8)} for _ in range(24)],
        {"kind": "text_to_text", "source": "spoken", "target": "written"},
    ),
}  # fmt: skip


def made(folder: Path, name: str, content: Any, capsys: Any, *options: str) -> tuple[Config, str]:
    """The config that is written for a file, and what is said on stderr."""
    path = folder / name
    if isinstance(content, list):
        write_jsonl(path, content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    capsys.readouterr()
    assert run("init", "--train", path, *options) == 0
    captured = capsys.readouterr()
    written = folder / "made.yaml"
    written.write_text(captured.out)
    return load_config(written), captured.err


@pytest.mark.parametrize("case", FILES)
def test_a_file_tells_its_task_its_columns_and_how_it_is_read(case, tmp_path, capsys):
    name, content, expected = FILES[case]
    config, said = made(tmp_path, name, content, capsys)
    train = expected.get("train", {})
    found = {key: getattr(config.task, key) for key in expected if key != "train"}
    assert found == {key: value for key, value in expected.items() if key != "train"}
    assert {key: getattr(config.data.train, key) for key in train} == train
    assert config.data.validation is not None and config.data.validation.fraction == 0.2
    assert "task: " in said and "held out" in said


@pytest.mark.slow
def test_a_written_config_runs_as_it_is(tmp_path, capsys):
    rows = classified(60)
    rows[7]["text"] = ""  # is left out, and said
    config, said = made(tmp_path, "my reviews.jsonl", rows, capsys)
    assert config.name == "my-reviews" and config.data.on_bad_row == "skip" and "1 rows cannot be read or lack" in said
    assert "# Labels: pos 30, neg 30" in (tmp_path / "made.yaml").read_text()
    overrides = ["train.epochs=1", f"logging.directory={tmp_path / 'runs'}"]
    assert run("finetune", "--config", tmp_path / "made.yaml", *overrides) == 0
    assert 8 <= len((tmp_path / "runs/my-reviews/predictions/validation.jsonl").read_text().splitlines()) <= 16


def test_a_run_is_called_like_its_file_or_like_its_folder(tmp_path, capsys):
    (tmp_path / "sst 2").mkdir()
    assert made(tmp_path / "sst 2", "train.jsonl", classified(24), capsys)[0].name == "sst-2"
    assert made(tmp_path, "a.b.jsonl", classified(24), capsys)[0].name == "a"


def test_what_is_asked_for_and_what_nothing_fits(tmp_path, capsys):
    rows = [{"one": words(5), "two": words(5), "n": i % 4} for i in range(24)]
    config, _ = made(tmp_path, "x.jsonl", rows, capsys, "--task", "translation")
    assert config.task.kind == "translation"
    config, _ = made(tmp_path, "x.jsonl", rows, capsys, "--task", "regression")
    assert config.task.model_dump()["label"] == "n"
    write_jsonl(tmp_path / "y.jsonl", [{"n": i, "m": i * i} for i in range(9)])
    assert run("init", "--train", tmp_path / "y.jsonl") == 2
    assert "its columns ('n', 'm') do not tell what is to be learned; say it with --task" in capsys.readouterr().err
    assert run("init", "--train", tmp_path / "y.jsonl", "--task", "tagging") == 2
    assert "--task tagging: expected a column of lists of words" in capsys.readouterr().err
    assert run("init", "--train", tmp_path / "y.jsnl") == 2
    assert "did you mean" in capsys.readouterr().err
    assert run("init", "--train", tmp_path / "x.jsonl", "--model", tmp_path / "no/model") == 2
    assert run("init") == 2 and "one of --train FILE" in capsys.readouterr().err


def test_templates_are_there_for_every_task(tmp_path, capsys):
    assert run("init", "--list") == 0
    listed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert set(TASKS) <= set(listed.values()), set(TASKS) - set(listed.values())
    assert run("init", "--template", "sst2") == 0
    (tmp_path / "x.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "x.yaml").name.startswith("sst2")
    assert run("init", "--template", "finetune/sst3") == 2
    assert "did you mean 'finetune/sst2'" in capsys.readouterr().err
    assert run("init", "--template", "quickstart") == 0  # not pretrain/quickstart


def test_shipped_configs_are_found_where_there_is_no_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = load_config(Path("jaxlm:finetune/sst2.yaml"))
    assert load_config(Path("configs/finetune/sst2.yaml")) == named
    (tmp_path / "configs/finetune").mkdir(parents=True)
    (tmp_path / "configs/finetune/sst2.yaml").write_text("name: mine")
    assert load_config(Path("configs/finetune/sst2.yaml")).name == "mine"  # one's own goes first


def test_a_look_at_a_file_needs_no_jax(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", classified(24))
    code = (
        "import sys; from jaxlm.cli import main; "
        f"status = main(['init', '--train', {str(tmp_path / 'x.jsonl')!r}]); "
        "print(status, [name for name in ('jax', 'flax') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
