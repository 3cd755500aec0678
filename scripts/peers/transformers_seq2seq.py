"""The peer of tasks that write: an encoder-decoder of Transformers fine-tuned by its Trainer, and its scores as JSON.

It runs as a process of its own, so that torch and jax never share one, and imports nothing of jaxlm. Batches are of
like length (`group_by_length`) and padded to their longest text, as run_translation and run_summarization do. With
--random-weights the network of a config.json is trained from random parameters, in torch throughout.

The clock starts at the end of step `--warmup` and stops at the end of the last step of training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch
import transformers
from text_pairs import Pair, add_pair_options, read_pairs
from timed_trainer import CountingCollator, add_common_options, load_model, print_figures, speed, timed_trainer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

IGNORED = -100


def encode(pairs: list[Pair], tokenizer: Any, args: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Model inputs; of several targets the first is learned."""
    sources = tokenizer([pair.source for pair in pairs], truncation=True, max_length=args.max_length)
    longest = args.max_target_length or args.max_length
    targets = tokenizer(text_target=[pair.targets[0] for pair in pairs], truncation=True, max_length=longest)
    columns = sources["input_ids"], sources["attention_mask"], targets["input_ids"]
    return [
        dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True)) for row in zip(*columns, strict=True)
    ]


class TargetCounter(CountingCollator):
    """Counts the targets' tokens, too."""

    def __init__(self, collate: Any):
        super().__init__(collate)
        self.targets: list[int] = []

    def __call__(self, rows: list[dict]) -> Any:
        batch = super().__call__(rows)
        self.targets.append(int((batch["labels"] != IGNORED).sum()))
        return batch


def write(model: Any, tokenizer: Any, pairs: list[Pair], args: argparse.Namespace) -> list[str]:
    """What the model writes for each source; sources of like length together."""
    model.eval()
    texts = [""] * len(pairs)
    encoded = encode(pairs, tokenizer, args)
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i]["input_ids"]))
    for start in range(0, len(order), args.eval_batch_size):
        chosen = order[start : start + args.eval_batch_size]
        batch = tokenizer.pad(
            [{name: encoded[i][name] for name in ("input_ids", "attention_mask")} for i in chosen], return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            ids = model.generate(**batch, num_beams=args.num_beams, max_new_tokens=args.max_new_tokens)
        for i, text in zip(chosen, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts


def score(texts: list[str], pairs: list[Pair], metric: str) -> dict[str, float]:
    """BLEU and chrF of sacrebleu, or the F1 of ROUGE, for each text the best over its references."""
    if metric == "bleu":
        import sacrebleu

        references = [[pair.targets[0] for pair in pairs]]
        bleu = sacrebleu.corpus_bleu(texts, references)
        return {"bleu": bleu.score, "chrf": sacrebleu.corpus_chrf(texts, references).score}
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    found = [scorer.score_multi(pair.targets, text) for text, pair in zip(texts, pairs, strict=True)]
    return {name: sum(one[name].fmeasure for one in found) / len(found) for name in names}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tunes as asked; the figures to print."""
    transformers.set_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = load_model(AutoModelForSeq2SeqLM, args)
    pairs = read_pairs(args.train, args.train_target, args.columns, args.prefix)[: args.limit]
    collator = TargetCounter(DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED))
    with tempfile.TemporaryDirectory() as directory:
        trainer, clock = timed_trainer(
            model,
            args,
            directory,
            settings={
                "num_train_epochs": args.epochs,
                "lr_scheduler_type": args.schedule,
                "adam_beta2": args.adam_beta2,
                "label_smoothing_factor": args.label_smoothing,
                "train_sampling_strategy": "group_by_length",
                "length_column_name": "length",
            },
            train_dataset=encode(pairs, tokenizer, args),
            data_collator=collator,
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    measured = slice(clock.warmup, len(clock.ends))
    figures = {
        **speed(clock, collator),
        "target_tokens_per_second": sum(collator.targets[measured]) / clock.seconds,
        "training_seconds": seconds,
    }
    if args.validation:
        validation = read_pairs(args.validation, args.validation_target, args.columns, args.prefix)
        figures |= score(write(model, tokenizer, validation, args), validation, args.metric)
    return {
        "peer": "transformers-seq2seq",
        "pairs": len(pairs),
        **figures,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are those of configs/finetune/translation_multi30k.yaml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(
        parser, batch_size=128, optimizer="adafactor", learning_rate=1e-2, weight_decay=0.0, warmup_steps=100
    )
    add_pair_options(parser)
    parser.add_argument("--limit", type=int, help="only the first training pairs")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--adam-beta2", type=float, default=0.98)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--metric", choices=("bleu", "rouge"), default="bleu")
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--eval-batch-size", type=int, default=32)
    return parser.parse_args(argv)


def main() -> None:
    print_figures(run, parse())


if __name__ == "__main__":
    main()
