"""`jaxlm bench --suite rows`: tokens a second from labelled texts to batches, and the loader's share of a step."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from jaxlm.bench.record import Measurement
from jaxlm.bench.training_step import time_steps
from jaxlm.config.schema import Config
from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.token_store import TokenStore
from jaxlm.errors import UserError
from jaxlm.setup.setup import make_context
from jaxlm.setup.tokenizer import make_tokenizer, open_checkpoint
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Request

_T = TypeVar("_T")
BATCH_SIZE = 32


def bench_rows(model: str, train: str, *, rows: int, max_length: int, steps: int, warmup: int) -> Measurement:
    """Times a text classification from its texts to its batches, and its training step.

    Args:
      model: an HF folder.
      train: a TSV without a header (text, label), repeated until there are `rows` rows.
      steps, warmup: of the training step, timed on the rows as they are.
    Raises:
      UserError: rows that no classification can be made of.
    """

    def config_of(path: str) -> Config:
        data = {"train": {"path": path, "columns": ["text", "label"]}, "max_length": max_length}
        task, training = {"text": "text", "label": "label"}, {"batch_size": BATCH_SIZE, "steps": steps + warmup}
        section = {"name": "bench", "model": {"init": model}, "task": task, "data": data, "train": training}
        return Config.model_validate(section)

    with tempfile.TemporaryDirectory() as folder:
        repeated = Path(folder) / "train.tsv"
        found = Path(train).read_bytes().rstrip(b"\n").split(b"\n")
        repeated.write_bytes(b"\n".join(itertools.islice(itertools.cycle(found), rows)))
        config = config_of(str(repeated))
        checkpoint = open_checkpoint(config)
        tokenizer = make_tokenizer(config, checkpoint, None, None)
        kind = TASKS[config.task.kind]
        try:
            sources = kind.open(config.task, Request(config.data, ("train",), Path(folder)))
        except UserError as error:
            raise UserError(str(error).replace(str(repeated), train)) from error  # the file that was given
        store = TokenStore(Path(folder) / "tokens", least=1)
        context = replace(make_context(config, tokenizer, checkpoint), tokens=store)
        task = kind.create(config.task, context, sources)
        first, datasets = _timed(lambda: task.datasets(sources))
        again, datasets = _timed(lambda: task.datasets(sources))
        layout = BatchLayout(batch_size=BATCH_SIZE, max_length=max_length)
        loader = datasets["train"].loader(layout)
        drawn = loader.steps_per_epoch or 1
        packing, batches = _timed(lambda: [next(loader) for _ in range(drawn)])
        loader.close()
    tokens = sum(int((batch["segment_ids"] > 0).sum()) for batch in batches)
    speeds = {
        "tokenized, and kept": tokens / first,
        "read from what was kept": tokens / again,
        "packed into batches": tokens / packing,
        "training step": time_steps(config_of(train), steps=steps, warmup=warmup)["tokens_per_second"],
    }
    share = speeds["training step"] / speeds["packed into batches"]
    lines = [f"{rows:,} texts, {tokens:,} tokens; a batch is made in {share:.1%} of a step.", ""]
    lines += ["| | tokens/s |", "|---|---|", *(f"| {name} | {speed:,.0f} |" for name, speed in speeds.items())]
    figures = {"texts": rows, "tokens": tokens, "tokens_per_second": speeds, "batch_share_of_step": share}
    return Measurement(figures, "\n".join(lines))


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    """Seconds, and what was made."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made
