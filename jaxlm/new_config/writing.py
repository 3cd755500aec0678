"""Writes the config for a file that was looked at, with comments that say what may be changed."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.sources.files import find_files
from jaxlm.errors import UserError
from jaxlm.new_config.guessing import Guess, guess_parallel, guess_task
from jaxlm.new_config.lengths import Ruler
from jaxlm.new_config.looking import Looked, look
from jaxlm.new_config.parallel import are_parallel, held_out_files, look_at_parallel

log = logging.getLogger("jaxlm")

_WRITERS = ("translation", "summarization", "text_to_text")
_SHOWN = 12
_COMMON = ("train", "training", "data", "all", "validation", "dev")
"""Names of files that do not say what is in them."""
_PLAIN = re.compile(r"[A-Za-z_]([\w ./*-]*\w)?", re.ASCII)


def config_for(
    train: Sequence[str], validation: Sequence[str] = (), *, task: str | None = None, model: str | None = None
) -> str:
    """Returns a config in YAML that trains on files, and logs what was chosen and why.

    Args:
      train: files of rows, or patterns; or parallel files.
      validation: files of the same kind; (): a share of the training rows is held out.
      task: one of `columns.TASKS`; None: as the columns look.
      model: what to fine-tune, a folder or hub id; None: a small model from random parameters.
    Raises:
      UserError: a file that cannot be read, columns that do not fit the task, no such model.
    """
    parallel = are_parallel(train)
    looked = look_at_parallel(train) if parallel else look(train)
    for note in looked.notes:
        log.info("%s: %s", looked.shown, note)
    guess = (guess_parallel if parallel else guess_task)(looked.table, task)
    held_out = _held_out(validation, looked) if validation else None
    log.info("task: %s, since %s", guess.name, "; ".join(guess.notes))
    unused = [name for name in looked.table.columns if name not in _used(guess)]
    if unused:
        log.info("columns that are not read: %s", ", ".join(unused))
    folder = None
    if model is not None:
        from jaxlm.hf.hub import find_model_dir

        folder = find_model_dir(model, key="--model")
    else:
        log.info("model: a small one from random parameters, since there is no --model; a pretrained one scores better")
    return _text(looked, guess, model, Ruler(folder), held_out)


def _held_out(paths: Sequence[str], looked: Looked) -> Any:
    """What `data.validation.path` is for files like those that were looked at.

    Raises:
      UserError: they are not there, or of another kind.
    """
    key = "--validation"
    if isinstance(looked.path, dict):
        if len(paths) < 2 or not are_parallel(paths, key):
            raise UserError(
                f"{key}: expected parallel files as --train has, a file to each of {', '.join(looked.path)}"
            )
        return held_out_files(paths, looked.path, key)
    find_files(paths, key)
    return paths[0] if len(paths) == 1 else list(paths)


def _text(looked: Looked, guess: Guess, model: str | None, ruler: Ruler, held_out: Any) -> str:
    rows = len(looked.table)
    writes = guess.name in _WRITERS
    length = ruler.longest(looked.table, (*guess.texts, *guess.beside), candidates=guess.name == "multiple_choice")
    data: list[str] = [f"  train: {flow({'path': looked.path, **looked.settings})}"]
    if guess.name == "question_answering":
        length = min(384, ruler.positions)
    target_length = 0
    if writes and guess.target is not None:
        length, target_length = ruler.fit(length, ruler.longest(looked.table, (guess.target,)))
    if held_out is not None:
        data.append(f"  validation: {flow({'path': held_out, **looked.settings})}")
    elif rows >= 20:
        fraction = 0.1 if rows >= 1000 else 0.2
        shares = "" if writes else "each label by its share, "
        data += [
            f"  # Held out of the training rows, {shares}near-copies on one side; or a file: --validation of `init`.",
            f"  validation: {flow({'fraction': fraction})}",
        ]
        log.info("validation: %g of the rows are held out", fraction)
    else:
        log.info("validation: none, since there are only %d rows", rows)
    kept = "longer texts are read in windows" if guess.name == "question_answering" else "longer texts are cut"
    data.append(f"  max_length: {length}  # tokens; {kept}")
    log.info("max_length: %d tokens, which all but one in a hundred rows keep%s", length,
             " (estimated from their words)" if model is None else "")  # fmt: skip
    if target_length:
        data.append(f"  max_target_length: {target_length}")
    if lacking := _lacking(looked, guess):
        data.append(f"  on_bad_row: skip  # {lacking} rows cannot be used; `stop` refuses them by file and row")
        log.info("on_bad_row: skip, since %d rows cannot be read or lack a text or a label", lacking)
    batch, epochs = (32, 3 if model else 10) if rows >= 1000 else (16, 4 if model else 20)
    counted = f"{rows:,}{'' if looked.whole else ' or more'} rows"
    lines = [
        f"# {guess.name} on {looked.shown}, {counted}; written by `jaxlm init`.",
        *_label_comment(looked, guess),
        "# Then: jaxlm check --config FILE; jaxlm finetune --config FILE --dry-run; jaxlm finetune --config FILE",
        f"name: {_name(looked.files[0])}  # of the run, in runs/",
        *_model(model, writes, length),
        f"task: {flow(guess.section)}",
        "data:",
        *data,
        f"optimizer: {flow(_optimizer(model, writes))}",
        f"train: {flow({'batch_size': batch, 'epochs': epochs})}",
    ]
    return "\n".join(lines) + "\n"


def _model(model: str | None, writes: bool, length: int) -> list[str]:
    if model is not None:
        return [f"model: {flow({'init': model})}"]
    lines = [
        "# A small model from random parameters. A pretrained one scores far better: put",
        f"# model: {{init: {'t5-small' if writes else 'bert-base-uncased'}}}   (a folder, or a hub id)",
        "# in the place of these lines, with optimizer: {learning_rate: "
        + ("1e-3, name: adafactor, weight_decay: 0.0" if writes else "5e-5, warmup: 0.1") + "}.",
    ]  # fmt: skip
    if writes:
        return [
            *lines,
            "model:",
            "  family: t5",
            "  config: {num_layers: 2, embed_dim: 128, num_heads: 4, head_dim: 32, mlp_dim: 512}",
            "  train_tokenizer: {type: byte_bpe, vocab_size: 4000}",
        ]
    return [
        *lines,
        "model:",
        "  family: bert",
        f"  config: {{num_layers: 2, embed_dim: 128, num_heads: 4, mlp_dim: 512, max_positions: {max(128, length)}}}",
        "  train_tokenizer: {type: wordpiece, vocab_size: 8000}",
    ]


def _optimizer(model: str | None, writes: bool) -> dict[str, Any]:
    if writes:
        return {"name": "adafactor", "learning_rate": 1e-3 if model else 1e-2, "warmup": 0.1, "weight_decay": 0.0}
    return {"learning_rate": 5e-5 if model else 1e-3, "warmup": 0.1}


def _used(guess: Guess) -> set[str]:
    used = {*guess.texts, *guess.beside, guess.target or ""}
    for value in guess.section.values():
        used |= set(value) if isinstance(value, list) else {str(value)}
    return used | ({"answers", "id"} if guess.name == "question_answering" else set[str]())


def _label_comment(looked: Looked, guess: Guess) -> list[str]:
    label = guess.section.get("label")
    if label is None or guess.name in ("regression", "embedding", "multiple_choice"):
        return []
    mark = guess.section.get("label_separator")
    counts = Counter[str]()
    for row in looked.table.rows:
        cell = row[label]
        parts = cell if isinstance(cell, list) else str(cell).split(mark) if mark else [cell]
        counts.update(str(part).strip() for part in parts if part is not None)
    named = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(_SHOWN))
    more = f", ... {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    log.info("labels: %s%s", named, more)
    return [f"# Labels: {' '.join((named + more).split())}"]


def _lacking(looked: Looked, guess: Guess) -> int:
    """Rows that cannot be read, or lack a text or a label."""
    columns = [*guess.texts, *(c for c in (guess.section.get("label"), guess.target) if isinstance(c, str))]
    blank = sum(any(_is_blank(row[column]) for column in columns) for row in looked.table.rows)
    return looked.table.skipped + blank


def _is_blank(cell: Any) -> bool:
    return cell is None or isinstance(cell, str) and not cell.strip()


def _name(path: str) -> str:
    stem = Path(path).name.partition(".")[0]
    if stem.lower() in _COMMON:  # the folder says more
        stem = Path(path).absolute().parent.name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "my-run"


def flow(value: Any) -> str:
    """Returns a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null")
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
