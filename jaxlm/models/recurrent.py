"""Recurrent language models: LSTM (Hochreiter & Schmidhuber, 1997; Gers et al., 2000) and GRU (Cho et al., 2014).

Embedding, stacked layers, dropout on whatever is not recurrent (Zaremba et al., 2014, arXiv:1409.2329), and, where tied
embeddings are of another width, a projection back to it. The gates are those of `torch.nn.LSTM` and `torch.nn.GRU`, and
so are the names and layouts of the exported tensors: `rnn.*` loads into such a module as it is. Transformers has no
recurrent family; config.json names classes (`LstmForCausalLM`) that only jaxlm reads.

Shape letters: B rows, T row length, S slots, E embed, H hidden, G gates, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules
from jaxlm.models.hf_config import read_hf, write_hf
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.dropout import dropout
from jaxlm.nn.heads import causal_lm, linear_classifier, token_classifier
from jaxlm.nn.layers import (
    ComputeConfig,
    Key,
    add_leading_axes,
    dense,
    embedding_lookup,
    embedding_table,
    param,
    split_key,
    take_columns,
)
from jaxlm.nn.stacks import init_stack, run_stack
from jaxlm.parallel.sharding import constrain

State = tuple[jax.Array, ...]
"""What a layer carries from token to token, float32 [B, H] each: (h, c) of an LSTM, (h,) of a GRU."""


@dataclass(frozen=True)
class RecurrentConfig:
    vocab_size: int = 32000
    num_layers: int = 2
    embed_dim: int = 512
    hidden_dim: int = 512
    dropout: float = 0.1
    classifier_dropout: float = 0.0
    tied: bool = True
    """Logits by the token table."""
    init_std: float = 0.02
    """Of the tables and heads; the layers' own weights are drawn from +-1 / sqrt(hidden_dim)."""
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | None = None

    max_positions: ClassVar[int] = 1_000_000
    """No limit: nothing in the network counts positions."""


@dataclass(frozen=True)
class Cell:
    """One recurrent unit: what happens between two tokens."""

    num_gates: int
    num_states: int
    step: Callable[[jax.Array, jax.Array, State], State]
    """(input projection, recurrent projection, float32 [B, G, H] with their biases, state) -> state."""
    init_bias: Callable[..., jax.Array]
    """Initialiser of the input bias [G, H]."""


def _lstm_step(x: jax.Array, y: jax.Array, state: State) -> State:
    """i, f, g, o = x + y;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c').

    x = W_x x_t + b_x and y = W_h h + b_h, the gates in torch's order.
    """
    _, c = state
    i, f, g, o = jnp.moveaxis(x + y, 1, 0)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru_step(x: jax.Array, y: jax.Array, state: State) -> State:
    """r, z = sigmoid(x_rz + y_rz);  n = tanh(x_n + r y_n);  h' = (1 - z) n + z h.

    x = W_x x_t + b_x and y = W_h h + b_h: the reset gate acts behind the matrix, as in torch and cuDNN.
    """
    (h,) = state
    r, z = jnp.moveaxis(jax.nn.sigmoid(x[:, :2] + y[:, :2]), 1, 0)
    n = jnp.tanh(x[:, 2] + r * y[:, 2])
    return ((1.0 - z) * n + z * h,)


def _open_forget_gate(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """1 for the forget gate, so that an untrained LSTM remembers (Jozefowicz et al., 2015); 0 for the others."""
    del key
    return jnp.zeros(shape, dtype).at[1].set(1)


LSTM = Cell(4, 2, _lstm_step, _open_forget_gate)
GRU = Cell(3, 1, _gru_step, nn.initializers.zeros)


def _scan(
    cell: Cell, x: Any, extra: Any, weight: Any, bias: Any, restart: Any, state: State, begin: State | None
) -> tuple[Array, State]:
    """Steps through time; `extra` [T, B, G, H] is added to the recurrent projections."""

    def step(state: State, inputs: Any) -> tuple[State, jax.Array]:
        x_BGH, extra_BGH, restart_B, begin = inputs
        anew = (0.0,) * len(state) if begin is None else begin
        state = tuple(jnp.where(restart_B[:, None], b, s) for b, s in zip(anew, state, strict=True))
        h = state[0].astype(weight.dtype)
        y_BGH = jax.lax.dot_general(h, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        y_BGH = y_BGH + bias[None]
        state = cell.step(x_BGH.astype(jnp.float32), y_BGH if extra is None else y_BGH + extra_BGH, state)
        return state, state[0].astype(weight.dtype)

    state, h_TBH = jax.lax.scan(step, state, (x, extra, restart, begin))
    return h_TBH, state


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(
    cell: Cell,
    x_TBGH: Float[Array, "T B G H"],
    weight_HGH: Float[Array, "H G H"],
    bias_GH: Float[Array, "G H"],
    restart_TB: Bool[Array, "T B"],
    state: State,
    begin: State | None,
) -> tuple[Float[Array, "T B H"], State]:
    """Runs a cell over time: its outputs, and the state after the last token.

    Args:
      x_TBGH: input projections of all tokens.
      restart_TB: where the state begins anew before the token, whatever was before.
      state: before the first token.
      begin: what the state begins anew with, float32 [T, B, H] each; None: 0.
    """
    return _scan(cell, x_TBGH, None, weight_HGH, bias_GH, restart_TB, state, begin)


def _recur_forward(cell: Cell, x: Any, weight: Any, bias: Any, restart: Any, state: State, begin: State | None) -> Any:
    extra = jnp.zeros(x.shape, jnp.float32)
    run = lambda x, e, s, b: _scan(cell, x, e, weight, bias, restart, s, b)  # noqa: E731
    outputs, pull = jax.vjp(run, x, extra, state, begin)
    return outputs, (pull, outputs[0], weight, restart, state, begin)


def _recur_backward(cell: Cell, saved: Any, cotangents: Any) -> Any:
    """The weight's gradient is one product over all tokens: left to the scan, every step would add to it in memory, in
    the compute dtype."""
    pull, h, weight, restart, state, begin = saved
    dx, dy, dstate, dbegin = pull(cotangents)
    before = jnp.concatenate([state[0][None].astype(h.dtype), h[:-1]])
    anew = jnp.zeros_like(before) if begin is None else begin[0].astype(h.dtype)
    before = jnp.where(restart[..., None], anew, before)
    low = dy.astype(before.dtype)
    dweight = jnp.einsum("trh,trgk->hgk", before, low, preferred_element_type=jnp.float32).astype(weight.dtype)
    return dx, dweight, dy.sum((0, 1)), None, dstate, dbegin


recur.defvjp(_recur_forward, _recur_backward)


class Layer(nn.Module):
    """One recurrent layer over whole rows."""

    cell: Cell
    hidden_dim: int
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self, x_BTE: Float[Array, "B T E"], restart_BT: Bool[Array, "B T"], state: State, begin: State | None = None
    ) -> tuple[Float[Array, "B T H"], State]:
        H, G, dtype, rules = self.hidden_dim, self.cell.num_gates, self.compute.dtype, self.compute.rules
        axes = ("embed", "gates", "hidden")
        init = uniform(H)
        x = dense(self, "input", x_BTE, (x_BTE.shape[-1], G, H), axes, init=init, bias=False)
        x = x + add_leading_axes(param(self, "input_bias", self.cell.init_bias, (G, H), axes[1:]).astype(dtype), 4)
        x = constrain(x, ("batch", "length", None, None), rules)
        weight = param(self, "recur", init, (H, G, H), axes).astype(dtype)
        # Gathered once, not in every step.
        weight = constrain(weight, (None, None, None), rules)
        bias = param(self, "recur_bias", nn.initializers.zeros, (G, H), axes[1:])
        anew = None if begin is None else tuple(jnp.moveaxis(b, 1, 0) for b in begin)
        h_TBH, state = cast(Any, recur(self.cell, jnp.moveaxis(x, 1, 0), weight, bias, restart_BT.T, state, anew))
        return constrain(jnp.moveaxis(h_TBH, 0, 1), ("batch", "length", None), rules), state


def uniform(hidden_dim: int) -> Callable[..., jax.Array]:
    """Initializer of a recurrent network's maps."""
    bound = hidden_dim**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class RecurrentTrunk(nn.Module):
    cell: Cell
    config: RecurrentConfig
    compute: ComputeConfig

    def setup(self) -> None:
        self.tokens = embedding_table(self, "tokens", self.config.vocab_size, self.config.embed_dim, "vocab")

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        slot_positions: Int[Array, "B S"] | None = None,
        key: Key = None,
        cache: State | None = None,
    ) -> Any:
        """Returns the last layer's states, and the cache, [L, B, H] each, where one is given.

        The state begins at 0 with every example, at its position 0: what stands before it, padding too, is forgotten.
        """
        del segment_ids
        c = self.config
        if (ways := self.compute.rules.size("context")) > 1:
            raise UserError(f"mesh.context={ways}: a recurrent network reads its rows in order; expected 1")
        first_key, stack_key, output_key = split_key(key, 3)
        x = embedding_lookup(self.tokens, tokens, self.compute.rules).astype(self.compute.dtype)
        x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)
        restart = positions == 0
        layer = Layer(self.cell, c.hidden_dim, self.compute, parent=None)
        begin = (jnp.zeros((tokens.shape[0], c.hidden_dim)),) * self.cell.num_states

        def apply(one: Any, carry: Any, k: Key) -> Any:
            x, cache = carry
            before = begin if cache is None else tuple(s[one["index"]] for s in cache)
            x, after = layer.apply({"params": one["params"]}, dropout(x, c.dropout, k), restart, before)
            if cache is not None:
                put = partial(jax.lax.dynamic_update_index_in_dim, index=one["index"], axis=0)
                cache = tuple(put(whole, new) for whole, new in zip(cache, after, strict=True))
            return x, cache

        # Of its own, since its input may be of another width.
        first = self.param("first", init_stack(layer, 1, x, restart, begin))
        first = {"params": first, "index": jnp.arange(1, dtype=jnp.int32)}
        x, cache = run_stack(apply, first, (x, cache), first_key, self.compute)
        if c.num_layers > 1:
            rest = self.param("layers", init_stack(layer, c.num_layers - 1, x, restart, begin))
            rest = {"params": rest, "index": jnp.arange(1, c.num_layers, dtype=jnp.int32)}
            x, cache = run_stack(apply, rest, (x, cache), stack_key, self.compute)
        x = take_columns(dropout(x, c.dropout, output_key), slot_positions)
        if c.tied and c.embed_dim != c.hidden_dim:
            x = dense(
                self, "project", x, (c.hidden_dim, c.embed_dim), ("embed_in", "embed"), init=uniform(c.hidden_dim)
            )
        return x if cache is None else (x, cache)


def _init_cache(cell: Cell, config: RecurrentConfig, rows: int, length: int, dtype: Any) -> State:
    del length, dtype  # the state does not grow, and stays in float32
    return (jnp.zeros((config.num_layers, rows, config.hidden_dim)),) * cell.num_states


# Our config field -> config.json's, in the usual HF spelling.
FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "embedding_size",
    "hidden_dim": "hidden_size",
    "dropout": "dropout",
    "classifier_dropout": "classifier_dropout",
    "tied": "tie_word_embeddings",
    "init_std": "initializer_range",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
_DEFAULTS = write_hf(RecurrentConfig(), FIELDS)


def _from_hf(config: Mapping[str, Any]) -> RecurrentConfig:
    return RecurrentConfig(**read_hf(RecurrentConfig, config, FIELDS, _DEFAULTS))


_WEIGHT, _BIAS = "(g h) d -> d g h", "(g h) -> g h"


def layer_rules(param: str, first: int, module: str = "rnn", suffix: str = "") -> tuple[Rule, ...]:
    """Returns the rules of layers under torch's names.

    Args:
      first: the number of torch's layer that ours begin with.
      suffix: of torch's names: `_reverse` of what reads backwards.
    """
    return (
        Rule(f"trunk/{param}/input", f"{module}.weight_ih_l{{i}}{suffix}", _WEIGHT, first),
        Rule(f"trunk/{param}/input_bias", f"{module}.bias_ih_l{{i}}{suffix}", _BIAS, first),
        Rule(f"trunk/{param}/recur", f"{module}.weight_hh_l{{i}}{suffix}", _WEIGHT, first),
        Rule(f"trunk/{param}/recur_bias", f"{module}.bias_hh_l{{i}}{suffix}", _BIAS, first),
    )


_TRUNK_MAP = WeightMap(
    rules=(
        Rule("trunk/tokens", "embedding.weight"),
        *layer_rules("first", 0),
        *layer_rules("layers", 1),
        Rule("trunk/project", "projection.weight", "e h -> h e"),
        Rule("trunk/project_bias", "projection.bias"),
    ),
    prefix="",
    copies=(("lm_head.weight", "embedding.weight"),),
)
_SMALL = RecurrentConfig()
_PRESETS = {
    "small": _SMALL,
    "base": replace(_SMALL, embed_dim=1024, hidden_dim=1024),
    "large": replace(_SMALL, embed_dim=1024, hidden_dim=2048),
}


def _family(name: str, title: str, cell: Cell, sizes: Mapping[str, int]) -> Family:
    return Family(
        name=name,
        config=RecurrentConfig,
        presets=_PRESETS,
        published=sizes,
        trunk=partial(RecurrentTrunk, cell),
        heads={
            "causal_lm": Head(causal_lm, f"{title}ForCausalLM", (Rule("head/unembed", "lm_head.weight"),)),
            "classification": Head(
                linear_classifier, f"{title}ForSequenceClassification", out_rules("score")[:1], LABEL_PARAMS
            ),
            "token_classification": Head(
                token_classifier, f"{title}ForTokenClassification", out_rules("score"), LABEL_PARAMS
            ),
        },
        trunk_map=_TRUNK_MAP,
        from_hf=_from_hf,
        to_hf=lambda config: write_hf(config, FIELDS),
        inputs=("tokens", "segment_ids", "positions", "slot_positions"),
        pool="last",
        init_cache=partial(_init_cache, cell),
    )


# Nobody published these sizes; what their shapes come to.
LSTM_FAMILY = _family("lstm", "Lstm", LSTM, {"small": 20_586_496, "base": 49_561_600, "large": 93_619_200})
GRU_FAMILY = _family("gru", "Gru", GRU, {"small": 19_535_872, "base": 45_363_200, "large": 78_930_944})
