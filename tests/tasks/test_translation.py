"""Translation: languages by the columns of parallel files, and how BLEU splits words."""

from __future__ import annotations

import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.config.loading import override_config
from jaxlm.config.schema import Config
from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Context


def test_languages_are_columns_and_chinese_is_split_by_characters():
    config = Config(name="x")
    made = override_config(
        config, ["task={kind: translation, source: en, target: de}", "data.train.path={en: a, de: b}"]
    )
    assert made.data.train is not None and made.data.train.path == {"en": "a", "de": "b"}
    made = override_config(made, ["data.train.path.en=c", "task.eval.limit=null", "data.max_target_length=12"])
    assert made.data.train is not None and made.data.train.path == {"en": "c", "de": "b"}
    train = Table("t.jsonl", ("en", "zh"), ({"en": "a", "zh": "今天天气很好"},), (1,))
    sources = TableSources({"train": train}, {}, ("en", "zh"))
    cls = TASKS["translation"]
    task = cls.create(
        cls.Config.model_validate({"target": "zh"}), Context(DataConfig(), byte_tokenizer(), head="seq2seq_lm"), sources
    )
    assert getattr(task, "tokenization", None) == "zh"


def test_a_split_of_bleu_that_is_not_installed_is_said_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cls = TASKS["translation"]
    config = cls.Config.model_validate({"kind": "translation", "tokenization": "ja-mecab"})
    context = Context(DataConfig(), byte_tokenizer(bos=False), head="seq2seq_lm")
    with pytest.raises(
        UserError, match=r"task.tokenization=ja-mecab: MeCab is not installed: pip install 'sacrebleu\[ja\]'"
    ):
        cls.create(config, context, TableSources({}, {}, ()))
    cls.create(config, context, None)  # what is only applied scores nothing
