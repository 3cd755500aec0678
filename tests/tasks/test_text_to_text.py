"""Tasks that write: rows as people write them, what a batch asks, and what is refused; without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tokenizers
from helpers.corpora import byte_tokenizer
from tokenizers import models, pre_tokenizers, processors

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Answer, Context, Request
from jaxlm.tasks.sentences import sentences
from jaxlm.tasks.text_to_text import TextToText, TextToTextConfig, Written
from jaxlm.tokenizer.files import TokenizerFiles
from jaxlm.tokenizer.tokenizer import Tokenizer

EOS = 257


def make(
    kind: str = "text_to_text", *, head: str = "seq2seq_lm", data: Any = None, tokenizer: Any = None, **task: Any
) -> TextToText:
    cls = TASKS[kind]
    tokenizer = tokenizer or byte_tokenizer(bos=head == "causal_lm")
    context = Context(DataConfig(**{"max_length": 64} | (data or {})), tokenizer, head=head)
    made = cls.create(cls.Config.model_validate({"kind": kind, **task}), context, None)
    assert isinstance(made, TextToText)
    return made


def table(*rows: dict[str, Any]) -> Table:
    return Table("t.jsonl", tuple(rows[0]), rows, tuple(range(1, len(rows) + 1)))


def ids(text: str) -> list[int]:
    return list(text.encode())


def one(task: TextToText, row: dict[str, Any], labelled: bool = True):
    [example] = task.examples(table(row), labelled=labelled, key="data.train").examples
    return example, {name: value.tolist() for name, value in example.arrays.items()}


def test_a_tokenizer_learns_what_stands_around_texts(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"input": "hi", "output": "yo"}) + "\n", encoding="utf-8")
    data = DataConfig.model_validate({"train": {"path": str(tmp_path / "t.jsonl")}})
    for task, around in (({"prefix": "say: "}, ["say:"]), ({"template": "Q {input}\nA"}, ["Q", "A"]), ({}, [])):
        config = TextToTextConfig.model_validate(task)
        sources = TextToText.open(config, Request(data, ("train",), tmp_path))
        assert list(sources.texts()) == ["hi", "yo", *around]


def test_an_encoder_reads_and_a_decoder_writes():
    task = make(prefix="say {}: ")
    example, arrays = one(task, {"input": "hi", "output": "yo"})
    assert arrays["tokens"] == ids("say {}: hi")
    assert arrays["labels"] == [*ids("yo"), EOS] and arrays["weights"] == [1, 1, 1]
    assert arrays["decoder_tokens"] == [0, *ids("yo")] and example.prompt is not None
    assert example.prompt.tolist() == [0]
    example, arrays = one(task, {"input": "hi", "output": "yo"}, labelled=False)
    assert arrays["decoder_tokens"] == [0] and arrays["weights"] == [0]


def test_targets_are_split_as_what_is_written():
    backends = [tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2}, "<unk>")) for _ in range(2)]
    for backend in backends:
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backends[1].normalizer = tokenizers.normalizers.Lowercase()
    roles = {"eos": "</s>", "unk": "<unk>"}
    tokenizer = Tokenizer(TokenizerFiles(backends[0], roles, {}, target=backends[1]))
    _, arrays = one(make(tokenizer=tokenizer), {"input": "A a", "output": "A"})
    assert arrays["tokens"] == [1, 2] and arrays["labels"] == [2, 0]


def test_a_decoder_alone_learns_the_target_alone():
    task = make(head="causal_lm")
    example, arrays = one(task, {"input": "hi", "output": "yo"})
    prompt = [256, *ids("hi\n")]
    assert arrays["tokens"] == [*prompt, *ids("yo")]
    assert arrays["labels"] == [0, 0, 0, *ids("yo"), EOS] and arrays["weights"] == [0, 0, 0, 1, 1, 1]
    assert example.prompt is not None and example.prompt.tolist() == prompt
    assert one(task, {"input": "hi", "output": "?"}, labelled=False)[1]["weights"] == [0] * 4
    assert task.head_of(["causal_lm"]) == "causal_lm" and task.head_of(["seq2seq_lm", "x"]) == "seq2seq_lm"
    assert task.longest_row(DataConfig(max_length=8, max_target_length=5)) == (
        "data.max_length + data.max_target_length",
        13,
    )
    longest = make().longest_row(DataConfig(max_length=8, max_target_length=9))
    assert longest == ("data.max_target_length", 9)


def test_templates_take_columns_of_the_row():
    task = make(template="{{q}}: {question} c: {source}", source="context")
    assert task.text_columns(task.config) == ("question", "context", "output")
    assert task.input_columns(task.config, ()) == ("question", "context")
    _, arrays = one(task, {"question": "who?", "context": ["I am.", "", "Ann."], "output": {"text": ["Ann", "A"]}})
    assert arrays["tokens"] == ids("{q}: who? c: I am. Ann.") and arrays["labels"] == [*ids("Ann"), EOS]


def test_columns_beside_the_source_may_be_blank():
    task = make(template="{input}\n{more}:", head="causal_lm")
    _, arrays = one(task, {"input": "hi", "more": "", "output": "yo"})
    assert arrays["tokens"] == [256, *ids("hi\n:"), *ids("yo")]
    for row in ({"input": " ", "more": "x", "output": "yo"}, {"input": "hi", "more": None, "output": "yo"}):
        with pytest.raises(UserError, match="row 1: (input is empty|more is missing)"):
            one(task, row)
    both = make(template="{question} {context}", source="unused")
    with pytest.raises(UserError, match="row 1: context is empty"):
        one(both, {"question": "who?", "context": "", "output": "Ann"})


def test_the_longest_column_is_cut_where_the_source_is_not_enough():
    task = make(head="causal_lm", data={"max_length": 10, "max_target_length": 4}, template="{input} {more}=")
    _, arrays = one(task, {"input": "ab", "more": "012345678901", "output": "c"})
    assert arrays["tokens"] == [256, *ids("ab 01234="), *ids("c")]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("no column", "no column in it"),
        ("{", "expected '}'|Single '{'"),
        ("a } b {source}", "Single '}'"),
        ("{source!r}", "is no column"),
        ("{source:>9}", "is no column"),
        ("{}", "is no column"),
    ],
)
def test_templates_that_raise(template, problem):
    with pytest.raises((UserError, ValueError), match=f"task.template=.*{problem}"):
        make(template=template)


def test_a_template_that_names_no_column_of_the_rows():
    with pytest.raises(UserError, match="no column 'contxt', which task.template asks for.*did you mean 'context'"):
        one(make(template="{contxt} {source}"), {"input": "a", "context": "b", "output": "c"})
    with pytest.raises(ValueError, match="prefix or template, not both"):
        make(template="{source}", prefix="x")


def test_long_texts_are_cut_where_nothing_is_lost_that_must_stay():
    data = {"max_length": 10, "max_target_length": 4}
    split = make(data=data, prefix="p ").examples(
        table({"input": "0123456789", "output": "abcdef"}), labelled=True, key="data.train"
    )
    [example] = split.examples
    assert example.tokens.tolist() == ids("p 01234567")
    assert example.arrays["labels"].tolist() == [*ids("abc"), EOS]  # the end is learned
    assert split.counts == {"truncated": 1, "targets_truncated": 1, "skipped": 0}
    task = make(head="causal_lm", data=data, template="{source} =>")
    _, arrays = one(task, {"input": "01 34567 9", "output": "a"})
    assert arrays["tokens"] == [256, *ids("01 345"), *ids(" =>")] + ids("a")
    with pytest.raises(UserError, match=r"row 1: task.template alone takes up more than data.max_length=10"):
        one(make(head="causal_lm", data=data, template="{source} 0123456789"), {"input": "ab", "output": "c"})
    for key in ("max_length", "max_target_length"):
        with pytest.raises(UserError, match=f"data.{key}=1: no room for text"):
            make(head="causal_lm", data={key: 1})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input": "", "output": "x"}, "row 1: input is empty; expected a text"),
        ({"input": " \n", "output": "x"}, "input is empty"),
        ({"input": [], "output": "x"}, "input is empty"),
        ({"input": "x", "output": ""}, "output is empty; expected a text"),
        ({"input": "x", "output": []}, "output is empty"),
        ({"input": "x", "output": ["", " "]}, "output is empty"),
        ({"input": None, "output": "x"}, "input is missing"),
        ({"input": float("nan"), "output": "x"}, "input is missing"),
        ({"input": "x", "output": None}, "output is missing"),
        ({"input": "x", "output": True}, "output: expected a text, found a boolean"),
        ({"input": "x", "output": {"answer": "x"}}, 'output: expected .*found an object without "text"'),
        ({"input": "x", "output": [["a"]]}, "output: expected a text, found a list"),
    ],
)
def test_bad_rows_stop_or_are_skipped(row, problem):
    tokenizer = byte_tokenizer()
    good = {"input": "a", "output": 3}
    with pytest.raises(UserError, match=problem):
        make(tokenizer=tokenizer).examples(table(row), labelled=True, key="data.train")
    task = make(tokenizer=tokenizer, data={"on_bad_row": "skip"})
    split = task.examples(table(good, row, good), labelled=True, key="data.train")
    assert [example.row for example in split.examples] == [0, 2] and split.counts["skipped"] == 1
    assert list(split.errors) == [1] and split.labels[0] == ["3"]


def test_references_may_differ_in_number():
    rows = ({"document": ["A b.", "C d."], "summary": ["a", "b"]}, {"document": "x y", "summary": "c"})
    task = make("summarization")
    split = task.examples(table(*rows, {"document": "z", "summary": ["d", "e", "f"]}), labelled=True, key="k")
    assert split.labels == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert split.examples[0].arrays["labels"].tolist() == [ord("a"), EOS]
    pytest.importorskip("rouge_score")
    answers = [
        Answer(row, refs, Written(text)) for row, refs, text in zip(rows, split.labels, ["b", "c"], strict=False)
    ]
    assert task.scores({}, answers, RowDataset(split, task.fields))["rouge1"] == 1.0


def tokenizer_with_codes() -> Tokenizer:
    """mBART-50's layout: the code in front, </s> behind."""
    words = ["<pad>", "<s>", "</s>", "en_XX", "de_DE", "pt_BR", "pt_PT", ">>fra<<", "hund", "dog", "<unk>"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(words[:7])
    pieces = [("en_XX", 3), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="en_XX $A </s>", special_tokens=pieces)
    return Tokenizer(TokenizerFiles(backend, {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}, {}))


@pytest.mark.parametrize("start", ["<pad>", "en_XX"])
def test_a_target_that_begins_with_the_decoders_start(start):
    task = make(tokenizer=tokenizer_with_codes())
    problem = f"row 1: output begins with '{start}', which the decoder is given by itself.*data.split_special_tokens"
    with pytest.raises(UserError, match=problem):
        one(task, {"input": "dog", "output": f"{start} hund"})
    assert one(task, {"input": "dog", "output": f"hund {start}"})[1]["decoder_tokens"][0] == 0
    with pytest.raises(UserError, match="output begins with 'en_XX', which the decoder is given by itself"):
        one(make(head="causal_lm", tokenizer=tokenizer_with_codes()), {"input": "dog", "output": "en_XX hund"})
    characters = make(tokenizer=tokenizer_with_codes().splitting(True))
    assert one(characters, {"input": "dog", "output": "<pad> hund"})[1]["labels"] == [3, 10, 10, 10, 8, 2]


def test_a_target_that_holds_the_end_is_said(caplog):
    task = make(tokenizer=tokenizer_with_codes())
    end = task.context.tokenizer.tokens([task.layout.end_id])[0]
    rows = table({"input": "dog", "output": "hund"}, {"input": "dog", "output": f"hund {end} hund"})
    assert len(task.examples(rows, labelled=True, key="data.train").examples) == 2
    assert f"1 targets hold '{end}', with which a text ends" in caplog.text and "row 2" in caplog.text


def test_a_text_without_a_token_is_a_bad_row():
    backend = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    task = make(tokenizer=Tokenizer(TokenizerFiles(backend, {"eos": "</s>", "unk": "<unk>"}, {})))
    for column in ("input", "output"):
        with pytest.raises(UserError, match=f"row 1: {column} has no token of the tokenizer"):
            one(task, {"input": "a", "output": "a", column: "\u200b"})


def test_a_target_of_unknown_characters_is_a_bad_row(caplog):
    backend = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    task = make(tokenizer=Tokenizer(TokenizerFiles(backend, {"eos": "</s>", "unk": "<unk>"}, {})))
    with pytest.raises(UserError, match="row 1: output has no character that the tokenizer knows"):
        one(task, {"input": "a", "output": "b c"})
    rows = table({"input": "b", "output": "a b"}, {"input": "b", "output": "a"})
    task.examples(rows, labelled=True, key="data.train")
    assert "1 of 2 targets hold characters that the tokenizer does not know" in caplog.text


def test_language_codes_stand_where_the_tokenizer_has_them():
    tokenizer, row = tokenizer_with_codes(), {"en": "dog", "de": "hund"}
    task = make("translation", tokenizer=tokenizer, source_language="en", target_language="de_DE")
    example, arrays = one(task, row)
    assert arrays["tokens"] == [3, 9, 2] and arrays["labels"] == [4, 8, 2]
    assert task.generation is not None and task.generation.forced_bos_id == 4 and example.prompt.tolist() == [0]
    back = make(
        "translation", tokenizer=tokenizer, source="de", target="en", source_language="de", target_language="en"
    )
    assert one(back, row)[1]["tokens"] == [4, 8, 2]
    marian = make("translation", tokenizer=tokenizer, target_language="fra")
    assert one(marian, row)[1]["tokens"] == [7, 3, 9, 2] and marian.layout.forced_id is None


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("xx_XX", "task.target_language=xx_XX: .*it has: de_DE, en_XX, pt_BR"),
        ("pt", "has no such language"),
        ("de_de", "did you mean 'de_DE'"),
    ],
)
def test_unknown_language_codes(code, problem):
    with pytest.raises(UserError, match=problem):
        make("translation", tokenizer=tokenizer_with_codes(), target_language=code)
    with pytest.raises(UserError, match="no language codes; leave it out"):
        make("translation", source_language="en_XX")
    with pytest.raises(UserError, match="a decoder alone has no language codes"):
        make("translation", head="causal_lm", source_language="en_XX")


def test_an_export_knows_what_stands_around_its_texts():
    trained = make("translation", prefix="say {}: ", source="en", data={"max_length": 40})
    written = trained.hf_config()
    context = Context(DataConfig(max_length=64), byte_tokenizer(bos=False), head="seq2seq_lm", hf_config=written)
    cls = TASKS["text_to_text"]
    applied = cls.create(cls.Config.of_checkpoint(), context, None)
    assert one(applied, {"text": "hi"}, labelled=False)[1]["tokens"] == ids("say {}: hi")
    assert applied.layout.max_length == 40  # long texts are cut where the run cuts them
    fresh = cls.create(cls.Config.of_checkpoint(), context, TableSources({}, {}, ()))
    assert one(fresh, {"text": "hi"}, labelled=False)[1]["tokens"] == ids("hi")
    assert make(template="{a}{b}").hf_config() == {"decoder_start_token_id": 0}
    assert make(head="causal_lm", template="{a}{b}").hf_config() == {}
    with pytest.raises(UserError, match="config.json: text_to_text: expected what an export writes"):
        cls.create(cls.Config.of_checkpoint(), replace(context, hf_config={"text_to_text": {"template": 3}}), None)


def test_answers_texts_and_several_hypotheses():
    task = make()
    example, _ = one(task, {"input": "a", "output": "b"})
    kept = task.decode(example, {"generated": np.asarray([*ids(" hi there "), EOS])})
    assert task.prediction({}, kept) == {"text": "hi there"}
    hypotheses = [(ids("one"), -0.5), (ids("two"), None)]
    several = task.prediction({}, task.decode(example, {"hypotheses": hypotheses}))
    assert several == {"text": "one", "n_best": [{"text": "one", "score": -0.5}, {"text": "two", "score": None}]}
    decoder = make(head="causal_lm")
    example, _ = one(decoder, {"input": "a", "output": "b"})
    assert decoder.decode(example, {"generated": np.asarray([*ids("hi"), EOS])}).text == "hi"
    rows = [{"input": f"q{i}"} for i in range(4)]
    texts = ["The  cat.", "the cat", "a dog", "x"]
    answers = [Answer(r, ["the cat", "The cat."], Written(t)) for r, t in zip(rows, texts, strict=True)]
    data = task.dataset(table({"input": "a", "output": "b"}), labelled=True, key="k")
    found = task.scores({"nll": 4.0, "tokens": 2.0, "correct": 1.0}, answers, data)
    assert found["exact_match"] == 0.5 and found["f1"] == 0.5 and found["loss"] == 2.0
    assert task.samples(answers)[0] == {"prompt": "q0", "text": "The  cat.", "reference": "the cat"}
    assert len(task.samples(answers)) == 3
    titles = [section.title for section in task.report(answers)]
    assert titles == ["Texts beside their references", "Worst texts", "Scores by length", "How texts are scored"]
    assert task.report([Answer(rows[0], None, Written("x"))]) == []


def test_the_best_checkpoint_is_chosen_by_what_is_written():
    for kind, first in {"text_to_text": "exact_match", "translation": "bleu", "summarization": "rougeL"}.items():
        assert make(kind).metrics[0].name == first and make(kind).written_rows == 500
        silent = make(kind, eval={"generate": False})
        assert silent.metrics[0].name == "loss" and silent.written_rows == 0
        assert {m.name for m in silent.metrics} == {m.name for m in make(kind).metrics}


def test_simple_systems():
    pytest.importorskip("rouge_score")
    task = make("summarization", baselines=True)
    rows = ({"document": "A cat e.g. Tom sat. It slept! Then ate. End", "summary": ["A cat e.g. Tom sat."]},)
    data = task.dataset(table(*rows), labelled=True, key="k")
    found = task.baselines(data, data)
    assert found["lead_1"]["rouge1"] == 1.0 > found["lead_3"]["rouge1"] > found["copy_source"]["rouge1"]
    assert sentences("今天很好。我们去！对") == ["今天很好。", "我们去！", "对"]
    assert sentences(["a b", " ", "c"]) == ["a b", "c"] and sentences("One\nTwo 3.5 x") == ["One", "Two 3.5 x"]


def test_a_tokenizer_must_end_texts_and_keys_of_other_tasks_are_refused():
    with pytest.raises(UserError, match="task.kind=text_to_text: the tokenizer has no eos token"):
        make(tokenizer=byte_tokenizer(eos=False, bos=False))
    for key, value in {"stride": 1, "long_text": "window", "concat_documents": True}.items():
        with pytest.raises(UserError, match=f"data.{key}"):
            TASKS["translation"].check_data_keys(DataConfig(**{key: value}))
    with pytest.raises(UserError, match="data.max_target_length: task.kind=classification writes no texts"):
        TASKS["classification"].check_data_keys(DataConfig(max_target_length=8))


def test_the_first_row_is_shown():
    task = make()
    rows = ({"input": "hi", "output": "yo"}, {"input": "a", "output": "bcd"})
    data = task.dataset(table(*rows), labelled=True, key="k")
    batch = next(iter(data.batches(BatchLayout(max_length=64))))
    shown = task.show(batch)
    assert shown[0] == "first packed row:" and "2 tokens: 'hi'" in "".join(shown)
    assert any("asked, 4 tokens: 'bcd</s>'" in line for line in shown) and "padding" in shown[-1]
