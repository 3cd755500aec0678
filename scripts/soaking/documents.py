"""Each file of a token cache, damaged in six ways: what is read is what was tokenized, and the damage is said."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
from helpers.corpora import byte_tokenizer
from helpers.pretraining_runs import stories

from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.build import Tokenizing
from jaxlm.data.corpus.cache import open_corpora
from jaxlm.data.corpus.row_plan import plan_corpus
from soaking.damage import SIX
from soaking.outcomes import Outcomes, Said


def soak(folder: Path, outcomes: Outcomes) -> None:
    (folder / "train.txt").write_text(stories(200))
    source = {"path": str(folder / "train.txt"), "documents": "blank_line"}
    data = DataConfig.model_validate({"train": source, "max_length": 32})
    tokenizer, cache = byte_tokenizer(), folder / "cache"

    def read() -> list[np.ndarray]:
        opened = open_corpora(data, ("train",), Tokenizing("text", tokenizer, "documents", cache))
        [(corpus, _)] = opened["train"]
        plan = plan_corpus(corpus, row_length=32, lookahead=1, concat_documents=False)
        return [segment.tokens for row in range(plan.num_rows) for segment in plan.segments(row)]

    expected = read()
    kept = folder / "kept"
    shutil.copytree(cache, kept)
    rng = random.Random(2)
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file() and path.suffix != ".lock")
    for file in files:
        for how, damage in SIX.items():
            shutil.rmtree(cache)
            shutil.copytree(kept, cache)
            before = (cache / file).read_bytes()
            damage(cache / file, rng)
            what = f"{how} {file.name}"
            changed = not (cache / file).exists() or (cache / file).read_bytes() != before
            with Said() as said:
                found, problem = outcomes.attempt(what, read)
            if problem is not None:
                outcomes.add(what, problem)
            elif [a.tolist() for a in found] != [a.tolist() for a in expected]:
                outcomes.fault(what, "other tokens are read")
            elif changed and file.name != "inputs.json" and "damaged" not in said.text:
                outcomes.fault(what, "nothing is said")
            else:
                outcomes.add(what, "said, made anew" if "damaged" in said.text else "no harm")
