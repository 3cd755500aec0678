"""The peer of pretraining a small GPT-2 on characters: a plain torch loop, its figures as JSON.

It runs as a process of its own, so that torch and jax never share one, and imports nothing of jaxlm. The network is
that of GPT-2 (Radford et al., 2019): learned positions, norms before attention and MLP, tied embeddings, attention by
`scaled_dot_product_attention`. A step clips gradients to norm 1 and updates by AdamW, all parameters in one kernel;
matrices alone are decayed. Each row is a stretch of the text that begins anywhere.

The clock starts at the end of step `--warmup` and stops at the end of the last step.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

MAX_NORM = 1.0


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns, width = x.shape
        dropout = self.dropout if self.training else 0.0
        qkv = self.qkv(self.attention_norm(x)).view(rows, columns, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, is_causal=True, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).reshape(rows, columns, width)
        x = x + F.dropout(self.out(mixed), dropout)
        hidden = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + F.dropout(self.down(hidden), dropout)


class GPT2(nn.Module):
    def __init__(self, vocabulary: int, columns: int, args: argparse.Namespace):
        super().__init__()
        self.dropout = args.dropout
        self.tokens = nn.Embedding(vocabulary, args.embed_dim)
        self.positions = nn.Embedding(columns, args.embed_dim)
        sizes = args.embed_dim, args.num_heads, args.mlp_dim, args.dropout
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(args.num_layers))
        self.norm = nn.LayerNorm(args.embed_dim)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        x = F.dropout(x, self.dropout if self.training else 0.0)
        for layer in self.layers:
            x = layer(x)
        logits = self.norm(x) @ self.tokens.weight.T
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def optimizer_of(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.b2), fused=True)


def run(args: argparse.Namespace) -> dict:
    """Trains as asked; the figures to print."""
    torch.manual_seed(args.seed)
    text = args.train.read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    plain = GPT2(len(ids), args.max_length, args)
    optimizer = optimizer_of(plain, args)
    model = torch.compile(plain) if args.compile else plain
    window = torch.arange(args.max_length)
    start = 0.0
    for step in range(args.steps):
        begins = torch.randint(len(data) - args.max_length - 1, (args.batch_size, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            loss = model(data[begins + window], data[begins + window + 1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), MAX_NORM)
        optimizer.step()
        if step + 1 == args.warmup:
            start = time.perf_counter()
    last = float(loss.detach())
    seconds = time.perf_counter() - start
    if not math.isfinite(last):
        raise SystemExit("the loss is not finite")
    tokens = (args.steps - args.warmup) * args.batch_size * args.max_length
    return {
        "peer": "torch",
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "loss": last,
        "tokens_per_second": tokens / seconds,
        "padding_share": 0.0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are those of configs/pretrain/shakespeare_gpt2_small.yaml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", required=True, type=Path)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--embed-dim", type=int, default=128)
    parser.add_argument("--mlp-dim", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--b2", type=float, default=0.99)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="by torch.compile; the warm-up must hold its compiling")
    parser.add_argument("--steps", type=int, default=2000, help="warm-up included")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts, at least 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON and nothing else")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    print(json.dumps(run(args), indent=None if args.json else 2))


if __name__ == "__main__":
    main()
