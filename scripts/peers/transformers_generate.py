"""The peer of generation: `generate` of Transformers on the texts of a file, timed, as JSON.

It runs as a process of its own, so that torch and jax never share one, and imports nothing of jaxlm. Texts of like
length go together; a batch is padded to its longest. The first batch is written once before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from timed_trainer import print_figures
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes as asked; the figures to print."""
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    encodes = AutoConfig.from_pretrained(args.model).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    model: Any = kind.from_pretrained(args.model, dtype=dtype).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    side = {} if encodes else {"padding_side": "left"}
    tokenizer = AutoTokenizer.from_pretrained(args.model, **side)
    if tokenizer.pad_token is None:  # GPT-2 and Llama have none
        tokenizer.pad_token = tokenizer.eos_token
    lines = args.input.read_text(encoding="utf-8").splitlines()[: args.limit]
    prompts = [json.loads(line)["text"] for line in lines]
    encoded = tokenizer(prompts, truncation=True, max_length=args.max_length)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
    batches = [order[start : start + args.batch_size] for start in range(0, len(order), args.batch_size)]
    written: dict[int, list[int]] = {}

    def write(chosen: list[int]) -> None:
        batch = tokenizer.pad({"input_ids": [encoded[i] for i in chosen]}, return_tensors="pt").to(model.device)
        with torch.no_grad():
            ids = model.generate(**batch, num_beams=args.num_beams, max_new_tokens=args.max_new_tokens, do_sample=False)
        before = 1 if encodes else batch["input_ids"].shape[1]
        for i, row in zip(chosen, ids[:, before:].tolist(), strict=True):
            written[i] = [token for token in row if token != tokenizer.pad_token_id]

    write(batches[0])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for chosen in batches:
        write(chosen)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if args.output:
        rows = ({"text": tokenizer.decode(written[i], skip_special_tokens=True)} for i in range(len(prompts)))
        args.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    tokens = sum(map(len, written.values()))
    return {
        "peer": "transformers-generate",
        "texts": len(prompts),
        "seconds": seconds,
        "texts_per_second": len(prompts) / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_text": tokens / len(prompts),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="HF-format directory or hub id, with its tokenizer")
    parser.add_argument("--input", required=True, type=Path, help='jsonl with {"text": ...}')
    parser.add_argument("--output", type=Path, help='jsonl with {"text": what was written}')
    parser.add_argument("--limit", type=int, help="only the first texts")
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads; absent: torch's own choice")
    parser.add_argument("--json", action="store_true", help="one line of JSON and nothing else")
    return parser.parse_args(argv)


def main() -> None:
    print_figures(run, parse())


if __name__ == "__main__":
    main()
