"""How a run's data become batches: the `BatchLayout` of its config, mesh and tokenizer."""

from __future__ import annotations

from jaxlm.config.schema import Config
from jaxlm.data.dataset import BatchLayout
from jaxlm.parallel.placement import local_share
from jaxlm.parallel.sharding import Rules


def make_layout(config: Config, rules: Rules, pad_id: int | None = None) -> BatchLayout:
    """Returns the layout of training and evaluation batches; `pad_id` is the tokenizer's."""
    data, train = config.data, config.train
    return BatchLayout(
        batch_size=None if train.batch_tokens else train.batch_size,
        batch_tokens=train.batch_tokens,
        grad_accum_steps=train.grad_accum_steps,
        max_length=data.max_length,
        row_length=data.row_length,
        packing=data.packing,
        max_shapes=data.max_shapes,
        eval_rows=data.eval_rows,
        order=data.batch_order,
        sampling=data.sampling,
        pad_id=pad_id or 0,
        seed=config.seed,
        share=local_share(rules),
    )
