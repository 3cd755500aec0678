"""The peer of question answering: the recipe of Transformers' run_qa with its Trainer, and the official scores as JSON.

It runs as a process of its own, so that torch and jax never share one, and imports nothing of jaxlm. Files are SQuAD's,
version 1 or 2. Contexts are read in windows; windows without the answer point to their first token; the best of twenty
starts and twenty ends make an answer of at most `--max-answer-tokens`. Batches are padded to their longest window.

The clock starts at the end of step `--warmup` and stops at the end of the last step of training.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import string
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from timed_trainer import CountingCollator, add_common_options, load_model, print_figures, speed, timed_trainer
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
)

N_BEST = 20


class Question(NamedTuple):
    """A question with its right answers, and where the first stands."""

    id: str
    question: str
    context: str
    answers: list[str]
    start: int


def read(path: Path) -> list[Question]:
    """The questions of a SQuAD file, without those whose first answer does not stand where it should."""
    questions = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for entry in paragraph["qas"]:
                placed = [a for a in entry["answers"] if context.startswith(a["text"], max(0, a["answer_start"]))]
                if entry["answers"] and not placed:
                    continue
                answers = [placed[0]["text"], *(a["text"] for a in entry["answers"])] if placed else []
                start = placed[0]["answer_start"] if placed else 0
                questions.append(Question(entry["id"], entry["question"].strip(), context, answers, start))
    return questions


class Windows(torch.utils.data.Dataset):
    """The windows of all questions: model inputs with the positions of the answer, and what evaluation needs."""

    def __init__(self, questions: list[Question], tokenizer, max_length: int, stride: int):
        encoded = tokenizer(
            [q.question for q in questions],
            [q.context for q in questions],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
        self.rows, self.owners, self.offsets = [], encoded["overflow_to_sample_mapping"], []
        for i, owner in enumerate(self.owners):
            kinds, offsets = encoded.sequence_ids(i), encoded["offset_mapping"][i]
            inside = [k for k, kind in enumerate(kinds) if kind == 1]
            start, end = self._ends(questions[owner], inside, offsets)
            row = {name: encoded[name][i] for name in names}
            self.rows.append({**row, "start_positions": start, "end_positions": end})
            self.offsets.append([span if kind == 1 else None for span, kind in zip(offsets, kinds, strict=True)])

    @staticmethod
    def _ends(question: Question, inside: list[int], offsets) -> tuple[int, int]:
        """The tokens of the answer; (0, 0) where the window has not all of it."""
        if not question.answers or not inside:
            return 0, 0
        start, end = question.start, question.start + len(question.answers[0])
        if offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
            return 0, 0
        first = max(k for k in inside if offsets[k][0] <= start)
        last = min(k for k in inside if offsets[k][1] >= end)
        return first, last

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def best_answers(
    questions: list[Question], windows: Windows, starts: np.ndarray, ends: np.ndarray, max_tokens: int
) -> tuple[list[str], list[float]]:
    """The best answer of each question, and by how much the logits of "no answer" exceed it."""
    found: dict[int, list[tuple[float, str]]] = defaultdict(list)
    null: dict[int, float] = {}
    for i, owner in enumerate(windows.owners):
        start_logits, end_logits, offsets = starts[i], ends[i], windows.offsets[i]
        null[owner] = min(null.get(owner, math.inf), float(start_logits[0] + end_logits[0]))
        for s in np.argsort(-start_logits)[:N_BEST]:
            for e in np.argsort(-end_logits)[:N_BEST]:
                if s >= len(offsets) or e >= len(offsets) or not offsets[s] or not offsets[e]:
                    continue
                if s <= e < s + max_tokens:
                    text = questions[owner].context[offsets[s][0] : offsets[e][1]]
                    found[owner].append((float(start_logits[s] + end_logits[e]), text))
    best = [max(found[i], key=lambda item: item[0], default=(-math.inf, "")) for i in range(len(questions))]
    return [text for _, text in best], [null[i] - score for i, (score, _) in enumerate(best)]


# The official scores.


def normalized(text: str) -> str:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def overlap(prediction: str, answer: str) -> float:
    p, a = normalized(prediction).split(), normalized(answer).split()
    if not p or not a:
        return float(p == a)
    same = sum((Counter(p) & Counter(a)).values())
    return 2 * same / (len(p) + len(a))


def compare(prediction: str, answers: list[str]) -> tuple[float, float]:
    golds = [answer for answer in answers if normalized(answer)] or [""]
    exact = max(float(normalized(prediction) == normalized(gold)) for gold in golds)
    return exact, max(overlap(prediction, gold) for gold in golds)


def score(questions: list[Question], texts: list[str], differences: list[float]) -> dict[str, float]:
    """Exact match and F1; where questions may have no answer, also those of the best threshold."""
    compared = [compare(text, q.answers) for text, q in zip(texts, questions, strict=True)]
    exact, f1 = (float(np.mean(column)) for column in zip(*compared, strict=True))
    if all(q.answers for q in questions):
        return {"exact_match": exact, "f1": f1}
    found = {}
    for name, column in (("exact_match", 0), ("f1", 1)):
        total = best = sum(not q.answers for q in questions)
        for i in np.argsort(differences, kind="stable"):
            total += compared[i][column] if questions[i].answers else -float(bool(texts[i]))
            best = max(best, total)
        found[f"best_{name}"] = best / len(questions)
    given = [text if difference <= 0 else "" for text, difference in zip(texts, differences, strict=True)]
    compared = [compare(text, q.answers) for text, q in zip(given, questions, strict=True)]
    found |= {name: float(np.mean([c[k] for c in compared])) for k, name in enumerate(("exact_match", "f1"))}
    return found


def answer_all(trainer: Trainer, tokenizer, args: argparse.Namespace) -> dict[str, float]:
    """Answers the questions of `--validation`; their scores."""
    questions = read(args.validation)
    windows = Windows(questions, tokenizer, args.max_length, args.stride)
    starts, ends = trainer.predict(windows).predictions[:2]  # pyright: ignore[reportAssignmentType]
    texts, differences = best_answers(questions, windows, starts, ends, args.max_answer_tokens)
    if args.predictions:
        named = {q.id: {"answer": t, "difference": d} for q, t, d in zip(questions, texts, differences, strict=True)}
        args.predictions.write_text(json.dumps(named, ensure_ascii=False, indent=1), encoding="utf-8")
    return score(questions, texts, differences)


def run(args: argparse.Namespace) -> dict:
    """Fine-tunes as asked; the figures to print."""
    transformers.set_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = load_model(AutoModelForQuestionAnswering, args)
    train_questions = read(args.train)[: args.limit]
    train = Windows(train_questions, tokenizer, args.max_length, args.stride)
    collator = CountingCollator(DataCollatorWithPadding(tokenizer))
    with tempfile.TemporaryDirectory() as directory:
        trainer, clock = timed_trainer(
            model,
            args,
            directory,
            settings={"num_train_epochs": args.epochs},
            train_dataset=train,
            data_collator=collator,
        )
        trainer.train()
        figures = speed(clock, collator)  # evaluation collates, too
        if args.validation:
            figures |= answer_all(trainer, tokenizer, args)
    return {
        "peer": "transformers-run-qa",
        "questions": len(train_questions),
        "windows": len(train),
        **figures,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are those of configs/finetune/qa_squad.yaml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser, batch_size=16, learning_rate=1e-4, weight_decay=0.0)
    parser.add_argument("--predictions", type=Path, help="write the answers to this file, for scores of other scripts")
    parser.add_argument("--limit", type=int, help="only the first training questions")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--max-answer-tokens", type=int, default=30)
    return parser.parse_args(argv)


def main() -> None:
    print_figures(run, parse())


if __name__ == "__main__":
    main()
