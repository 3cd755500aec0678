"""`jaxlm init` on columns that mislead: dates, spans, lists beside a label, single answers, instructions, prose."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.finetuning_runs import run, write_jsonl

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.new_config.lengths import Ruler

RNG = random.Random(1)
WORDS = [f"word{i}" for i in range(300)]
CONLL = "-DOCSTART- -X- O O\n\n" + "".join(
    f"Ann{i} NNP I-NP B-PER\nsleeps VBZ I-VP O\nthere{i} RB I-ADVP O\n\n" for i in range(24)
)


def words(count: int) -> str:
    return " ".join(RNG.choices(WORDS, k=count))


def init(folder: Path, name: str, content: Any, capsys: Any, *options: str) -> Config:
    """The config that is written for a file."""
    write_jsonl(folder / name, content) if isinstance(content, list) else (folder / name).write_text(content)
    capsys.readouterr()
    assert run("init", "--train", folder / name, *options) == 0
    written = folder / "made.yaml"
    written.write_text(capsys.readouterr().out)
    return load_config(written)


def mails(*dates: str) -> list[dict[str, Any]]:
    """Rows with a date, in which # is the day, a text and a label."""
    return [
        {
            "Datum": dates[i % len(dates)].replace("#", str(10 + i % 17)),
            "Betreff": words(4),
            "Art": "Spam" if i % 3 else "kein Spam",
        }
        for i in range(30)
    ]


def question(context: str, answer: Any) -> dict[str, Any]:
    return {"question": words(4), "context": context, "answer": answer}


FILES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "dates with points": ("m.jsonl", mails("#.12.2024"), {"text": "Betreff", "label": "Art"}),
    "dates and times": ("m.jsonl", mails("2024-12-# 08:15", "2024-12-#T08:15Z"), {"text": "Betreff"}),
    "dates of mails": ("m.jsonl", mails("Mon, # Dec 2024 10:01:02 +0100", "# März 2024"), {"text": "Betreff"}),
    "addresses and short texts": (
        "m.jsonl",
        [{"from": f"m{i}@x.de", "text": words(2), "label": i % 2} for i in range(30)],
        {"text": "text"},
    ),
    "addresses alone": (
        "m.jsonl",
        [{"url": f"https://x.org/{i}", "label": i % 2} for i in range(30)],
        {"text": "url"},
    ),
    "a list beside a label": (
        "m.jsonl",
        [{"body": words(6), "label": "ab"[i % 2], "tags": ["x", "yz"[i % 2]]} for i in range(30)],
        {"kind": "classification", "label": "label", "problem": "auto"},
    ),
    "a label of many kinds": (
        "m.csv",
        "text,label\n" + "".join(f"{words(6)},l{i}\n" for i in range(24)),
        {"kind": "classification", "label": "label"},
    ),
    "a carriage return in a field": (
        "m.csv",
        "text,label\nfive\rwords,1\n" + "".join(f"{words(5)},{i % 2}\n" for i in range(24)),
        {"kind": "classification", "label": "label", "on_bad_row": "skip"},
    ),
    "single answers": (
        "q.jsonl",
        [question(text := words(20), text.split()[i % 3]) for i in range(30)],
        {"kind": "question_answering", "answers": "answer"},
    ),
    "answers that are no parts": (
        "q.jsonl",
        [question(words(20), "yes" if i % 2 else "no") for i in range(30)],
        {"kind": "classification", "label": "answer"},
    ),
    "Doccano's spans": (
        "d.jsonl",
        [{"id": i, "text": words(6), "label": [[0, 5, "PER"]] if i % 2 else []} for i in range(30)],
        {"kind": "tagging", "text": "text", "entities": "label"},
    ),
    "four columns of words": ("ner.conll", CONLL, {"kind": "tagging", "tokens": "tokens", "tags": "tags"}),
    "and a name that tells nothing": ("ner.txt", CONLL, {"kind": "tagging", "tags": "tags"}),
    "tags of parts of speech, too": (
        "n.jsonl",
        [{"tokens": words(4).split(), "pos_tags": [*"abcd"], "ner_tags": ["B-X", *"OOO"]} for _ in range(30)],
        {"kind": "tagging", "tags": "ner_tags"},
    ),
    "instructions": (
        "i.jsonl",
        [{"instruction": words(5), "input": "" if i % 2 else words(9), "output": "ab"[i % 2]} for i in range(30)],
        {"kind": "text_to_text", "source": "instruction", "template": "{instruction}\n{input}\n"},
    ),
    "prompts": (
        "i.jsonl",
        [{"prompt": words(5), "completion": "ab"[i % 2]} for i in range(30)],
        {"kind": "text_to_text", "source": "prompt", "target": "completion", "template": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_columns_that_mislead(case, tmp_path, capsys):
    name, content, expected = FILES[case]
    config = init(tmp_path, name, content, capsys)
    of_the_data = expected.get("on_bad_row", "stop")
    expected = {key: value for key, value in expected.items() if key != "on_bad_row"}
    assert {key: getattr(config.task, key) for key in expected} == expected
    assert config.data.on_bad_row == of_the_data


def test_the_column_of_texts_is_the_longest(tmp_path, capsys):
    rows = [{"title": words(3), "body": words(9), "label": i % 2} for i in range(30)]
    config = init(tmp_path, "x.jsonl", rows, capsys, "--task", "classification")
    assert config.task.model_dump()["text"] == "body"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("book.txt", "It was late, and dark.\nOh, said Ann, again.\nThen:\nwell\n", "looks like plain text"),
        ("list.txt", "one\ntwo\nthree\n", "looks like plain text, and not like rows"),
        (
            "mail.jsonl",
            [{"id": i, "mail": {"body": "a"}} for i in range(5)],
            "mail holds objects, whose fields are not",
        ),
        ("chat.jsonl", [{"messages": [{"role": "user"}]}] * 5, "messages holds objects, whose fields are not read"),
    ],
)
def test_what_holds_no_rows_is_said(name, content, problem, tmp_path, capsys):
    write_jsonl(tmp_path / name, content) if isinstance(content, list) else (tmp_path / name).write_text(content)
    assert run("init", "--train", tmp_path / name) == 2
    said = capsys.readouterr().err
    assert problem in said and "docs/guides/data.md" in said and "warning" not in said


def test_a_decoder_has_positions_for_what_it_reads_and_writes(tmp_path, shared_data):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))
    for tokenizer in (shared_data / "tokenizers/gpt2").glob("*"):
        (tmp_path / tokenizer.name).write_bytes(tokenizer.read_bytes())
    ruler = Ruler(tmp_path)
    assert ruler.fit(64, 48) == (32, 32) and ruler.fit(64, 16) == (48, 16) and ruler.fit(30, 30) == (30, 30)
    assert Ruler(None).fit(512, 512) == (512, 512)
