"""Prompts in, continuations out, as they are written: `jaxlm generate`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jaxlm.console import printable
from jaxlm.data.sources.table import place
from jaxlm.data.sources.text_files import undecoded
from jaxlm.errors import UserError
from jaxlm.inference.generate import generate, stream
from jaxlm.inference.predict import Predictor, make_table

PROMPT = "> "


def read_lines() -> Iterator[str]:
    """Yields the lines of standard input, bytes that are not UTF-8 as surrogates; at a terminal, it asks for each."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=None if sys.stdin.isatty() else "utf-8-sig", errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return


def write_texts(predictor: Predictor, line: str, number: int = 1) -> Iterator[str]:
    """Yields what the model writes for one prompt, piece by piece; of several texts, one to a line.

    Args:
      line: the text column of a row of the task.
      number: of the line, for errors and random numbers.
    Raises:
      UserError: the prompt cannot be read, is too long, or the task writes nothing.
    """
    setup = predictor.trained.setup
    task, tokenizer, params = setup.task, setup.tokenizer, predictor.trained.params
    settings = task.generation
    columns = task.input_columns(setup.config.task, ()) if settings is not None else ()
    if settings is None or len(columns) != 1:
        wanted = "writes no text" if settings is None else f"reads the columns {', '.join(columns)}"
        raise UserError(f"--run: a model of task {setup.config.task.kind} {wanted}; use `jaxlm predict`")
    table = make_table([(number, number, {columns[0]: line})], "standard input", columns, setup.config.data.clean)
    dataset = predictor.without_long_prompts(task.dataset(table, labelled=False, key="standard input"))
    if dataset.split.errors:
        raise UserError(next(iter(dataset.split.errors.values())))
    [example] = dataset.split.examples
    assert example.prompt is not None
    prompt, pad_id = example.prompt.tolist(), setup.layout.pad_id
    source = example.arrays["tokens"].tolist() if setup.model.head == "seq2seq_lm" else None
    if settings.num_beams > 1 or settings.num_return_sequences > 1:
        sources = None if source is None else [source]
        [texts] = generate(
            setup.model, params, [prompt], settings, encoder_inputs=sources, pad_id=pad_id, numbers=[number - 1]
        )
        yield "\n".join(tokenizer.continuation(prompt, text.tokens) for text in texts)
        return
    pieces = stream(setup.model, params, prompt, settings, encoder_input=source, pad_id=pad_id, number=number - 1)
    yield from new_text(pieces, lambda ids: tokenizer.continuation(prompt, ids))


def new_text(pieces: Iterator[list[int]], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yields what each piece adds to the text, held back while its last character is not whole."""
    ids: list[int] = []
    said = ""
    for piece in pieces:
        ids += piece
        text = decode(ids)
        if text.startswith(said) and not text.endswith("\ufffd"):
            yield text[len(said) :]
            said = text
    if ids and (text := decode(ids)) != said:
        yield text[len(said) :] if text.startswith(said) else f"\n{text}"


def converse(predictor: Predictor, say: Callable[..., Any] = print) -> None:
    """Answers prompts until there are none; one that cannot be answered is said, and the next is read.

    Raises:
      UserError: the model writes nothing.
    """
    setup = predictor.trained.setup
    if setup.task.generation is None:
        raise UserError(f"--run: a model of task {setup.config.task.kind} writes no text; use `jaxlm predict`")
    for number, line in enumerate(read_lines(), 1):
        try:
            if (bad := undecoded(line)) is not None:
                raise UserError(f"{place('standard input', number, number)}: {bad.problem}")
            for piece in write_texts(predictor, line, number):
                say(printable(piece), end="", flush=True)
        except UserError as error:
            print(printable(f"error: {error}"), file=sys.stderr)
            if sys.stdout.isatty():
                continue
        say(flush=True)
