"""Settings of a config that reach the run's tokenizer."""

from __future__ import annotations

import pytest
from helpers.tokenizer_folders import ids

from jaxlm.config.schema import Config
from jaxlm.setup.setup import make_setup
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer


@pytest.mark.parametrize("split", [None, True, False])
def test_special_tokens_in_texts_are_split_where_the_config_says_so(split, tmp_path):
    settings = TokenizerTrainingConfig(vocab_size=80)
    train_tokenizer(["a [ mask ] of clay"] * 9, settings).splitting(split is False).save(tmp_path / "tokenizer")
    (tmp_path / "rows.csv").write_text("text,label\na [MASK],x\nclay,y\n")
    config = {
        "name": "x",
        "model": {
            "family": "bert", "tokenizer": str(tmp_path / "tokenizer"),
            "config": {"num_layers": 1, "embed_dim": 8, "num_heads": 2, "mlp_dim": 8},
        },
        "task": {"kind": "classification"},
        "data": {"train": {"path": str(tmp_path / "rows.csv")}, "split_special_tokens": split},
    }  # fmt: skip
    setup = make_setup(Config.model_validate(config))
    mask = setup.tokenizer.mask_id
    assert (mask in ids(setup.tokenizer, "a [MASK]")) is (split is not True)
    split_rows = setup.datasets["train"].examples()
    assert split_rows is not None
    [row] = [example for example in split_rows.examples if example.row == 0]
    assert (mask in row.arrays["tokens"]) is (split is not True)
