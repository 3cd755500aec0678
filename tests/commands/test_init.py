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
from helpers.writing_runs import PAIRS

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.new_config.parallel import name_columns
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


def parallel(folder: Path, name: str, number: int, seed: int = 0) -> None:
    """Files `name`.en and `name`.de: words, and their translations."""
    rng = random.Random(seed)
    lines = [rng.choices(list(PAIRS), k=rng.randint(1, 4)) for _ in range(number)]
    (folder / f"{name}.en").write_text("".join(" ".join(line) + "\n" for line in lines))
    (folder / f"{name}.de").write_text("".join(" ".join(PAIRS[word] for word in line) + "\n" for line in lines))


def init(capsys: Any, written: Path, *options: Any) -> tuple[Config, str]:
    """The config that `init` writes, and what it says."""
    capsys.readouterr()
    assert run("init", *options) == 0
    captured = capsys.readouterr()
    written.write_text(captured.out)
    return load_config(written), captured.err


def test_parallel_files(tmp_path, capsys):
    """A file to a language becomes a translation with its column names from the files' names."""
    for name, number in (("train", 30), ("news.1", 4), ("news.2", 5), ("dev", 6)):
        parallel(tmp_path, name, number)
    first, *rest = (tmp_path / "train.de").read_text().split("\n")
    (tmp_path / "train.de").write_text("\n".join(["", *rest]))
    source, target = tmp_path / "train.en", tmp_path / "train.de"
    config, said = init(capsys, tmp_path / "made.yaml", "--train", source, target)
    assert config.data.train.path == {"en": str(source), "de": str(target)}
    task = config.task.model_dump()
    assert (task["kind"], task["source"], task["target"]) == ("translation", "en", "de")
    assert config.data.on_bad_row == "skip" and config.data.validation.fraction == 0.2 and "en is read and de" in said
    dev = tmp_path / "dev.de", tmp_path / "dev.en"  # in another order
    config, _ = init(capsys, tmp_path / "made.yaml", "--train", source, target, "--validation", *dev)
    assert config.data.validation.path == {"en": str(dev[1]), "de": str(dev[0])}
    patterns = [str(tmp_path / f"news.*.{ending}") for ending in ("de", "en")]
    config, _ = init(capsys, tmp_path / "made.yaml", "--train", *patterns)
    assert config.data.train.path == dict(zip(("de", "en"), patterns, strict=True)) and config.data.validation is None
    files = [str(tmp_path / f"news.{i}.{ending}") for ending in ("en", "de") for i in (1, 2)]
    config, said = init(capsys, tmp_path / "made.yaml", "--train", *files, "--task", "text_to_text")
    assert config.data.train.path == {"en": tuple(files[:2]), "de": tuple(files[2:])}
    assert config.task.kind == "text_to_text"


def test_rows_of_several_files_and_held_out_rows(tmp_path, capsys):
    for name in ("a", "b", "dev"):
        (tmp_path / f"{name}.csv").write_text(
            csv_of(";", [["text", "label"], *([words(6), "xy"[i % 2]] for i in range(12))])
        )
    files = [str(tmp_path / f"{name}.csv") for name in ("a", "b")]
    options = ("--train", *files, "--validation", tmp_path / "dev.csv")
    config, _ = init(capsys, tmp_path / "made.yaml", *options)
    assert config.data.train.path == tuple(files)
    assert config.data.validation.path == str(tmp_path / "dev.csv") and config.data.validation.separator == ";"


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("train.en", "train.de", {"en", "de"}),
        ("train.en.gz", "train.de.gz", {"en", "de"}),
        ("news.de-en.en", "news.de-en.de", {"en", "de"}),
        ("train.en.txt", "train.de.txt", {"en", "de"}),
        ("train_en.txt", "train_de.txt", {"en", "de"}),
        ("src-train.txt", "tgt-train.txt", {"src", "tgt"}),
        ("train.en_XX", "train.de_DE", {"en_XX", "de_DE"}),
        ("en/train.txt", "de/train.txt", {"en", "de"}),
        ("*.en", "*.de", {"en", "de"}),
    ],
)
def test_names_of_parallel_columns(one, other, names):
    columns = name_columns([one, other])
    assert set(columns) == names and list(columns.values()) == [one, other]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--train", "t.en", "t.fr"), "no file t.fr"),
        (("--train", "t.en", "t.en"), "t.en twice"),
        (("--train", "t.en", "a.csv"), "a.csv holds rows, by its name, and t.en does not"),
        (("--train", "t.en", "t.de", "u.de"), "found 1 that end with en, 2 that end with de"),
        (("--train", "t.en", "t.de", "--task", "classification"), "--task classification: parallel files hold texts"),
        (("--train", "t.en", "t.de", "--validation", "a.csv"), "--validation: expected parallel files as --train has"),
        (("--train", "t.en", "u.de"), "expected as many in each"),
        (("--train", "a.csv", "--validation", "b.csv"), "--validation: no file b.csv; did you mean 'a.csv'?"),
        (("--template", "sst2", "--validation", "a.csv"), "--validation: only with --train FILE"),
    ],
    ids=["no file", "twice", "rows", "numbers", "task", "held out", "lines", "held-out rows", "template"],
)  # fmt: skip
def test_mistakes_with_several_files(options, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parallel(tmp_path, "t", 3)
    (tmp_path / "u.de").write_text("eins\n")
    (tmp_path / "a.csv").write_text(csv_of(",", [["text", "label"], *([words(6), "xy"[i % 2]] for i in range(12))]))
    assert run("init", *options) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_a_config_for_parallel_files_runs_as_it_is(tmp_path, capsys):
    parallel(tmp_path, "train", 64)
    parallel(tmp_path, "dev", 8, seed=1)
    options = [f"--{split}" for split in ("train", "validation")]
    files = [[tmp_path / f"{name}.{ending}" for ending in ("en", "de")] for name in ("train", "dev")]
    config, _ = init(capsys, tmp_path / "made.yaml", options[0], *files[0], options[1], *files[1])
    assert run("check", "--config", tmp_path / "made.yaml", "--json", tmp_path / "found.json") == 0
    assert json.loads((tmp_path / "found.json").read_text())
    small = ["model.config={num_layers: 1, embed_dim: 32, num_heads: 2, head_dim: 16, mlp_dim: 64}"]
    overrides = [
        *small,
        "model.train_tokenizer.vocab_size=300",
        "train.epochs=1",
        f"logging.directory={tmp_path / 'runs'}",
    ]
    assert run("finetune", "--config", tmp_path / "made.yaml", *overrides) == 0
    predictions = (tmp_path / "runs" / config.name / "predictions/validation.jsonl").read_text().splitlines()
    assert len(predictions) == 8 and set(json.loads(predictions[0])) >= {"en", "de", "prediction"}


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
