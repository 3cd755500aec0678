"""Recurrent encoder-decoders with attention: Bahdanau et al., 2015 (arXiv:1409.0473); Luong et al., 2015
(arXiv:1508.04025).

The encoder's layers read each text in both directions. The decoder's states begin with a map of what the encoder's
last layer says at both ends of the text; each then reads the encoder through attention, by a product ("general", Luong)
or by a layer of its own ("additive", Bahdanau), and the two together are what the logits are made of. With input
feeding that is also read with the next token, so that training steps through the target token by token; without,
attention is computed for all tokens at once. Gates, names and layouts are those of `torch.nn.LSTM` and `torch.nn.GRU`.

Shape letters: B rows, R rows of the decoder, T row length, S encoder length, U decoder length, E embed, H hidden,
L layers of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.recurrent import Cell, Layer, State, uniform
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import ComputeConfig, Key, embedding_lookup, embedding_table, param, split_key, take_columns
from jaxlm.nn.stacks import init_stack, run_stack
from jaxlm.parallel.sharding import constrain

ATTENTIONS = ("general", "additive")


@dataclass(frozen=True)
class RecurrentSeq2SeqConfig:
    vocab_size: int = 32000
    num_layers: int = 2
    """Of the encoder, and of the decoder."""
    embed_dim: int = 512
    hidden_dim: int = 512
    """Of the decoder's states; of two directions of the encoder, each has half."""
    attention: str = "general"
    """By a product (Luong's "general") or "additive" (Bahdanau's)."""
    input_feeding: bool = False
    """A token is read together with what attention gave at the token before."""
    bidirectional: bool = True
    dropout: float = 0.2
    classifier_dropout: float = 0.0
    tied: bool = True
    """Logits by the token table."""
    init_std: float = 0.02
    """Of the tables; the other weights are drawn from +-1 / sqrt(hidden_dim)."""
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int = 0
    decoder_start_id: int = 0
    """The token that the decoder reads first."""

    max_positions: ClassVar[int] = 1_000_000
    """No limit: nothing in the network counts positions."""

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise UserError(f"model config: attention={self.attention!r}: expected one of {', '.join(ATTENTIONS)}")
        if self.bidirectional and self.hidden_dim % 2:
            raise UserError(f"model config: two directions do not divide hidden_dim={self.hidden_dim}")


class Memory(NamedTuple):
    """What the decoder reads of the encoder; rows come first in every array."""

    states: Float[Array, "B S H"]
    keys: Float[Array, "B S H"]
    """What attention compares with."""
    segment_ids: Int[Array, "B S"]
    begin: Float[Array, "B U L H"]
    """What the decoder's states begin with at each of its columns; of one column where all of a row begin alike."""


class Cache(NamedTuple):
    """The decoder's states after the last token; rows are the second axis of every array."""

    states: State
    """float32 [L, R, H] each."""
    fed: Float[Array, "1 R H"]
    """What attention gave at the last token."""


class BidirectionalLayer(nn.Module):
    """One layer of the encoder: a recurrent layer, and another that reads each text backwards."""

    cell: Cell
    config: RecurrentSeq2SeqConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self, x_BTE: Float[Array, "B T E"], first_BT: Bool[Array, "B T"], last_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T H"]:
        """Args: first_BT, last_BT: where a text begins and ends."""
        size = self.config.hidden_dim // (2 if self.config.bidirectional else 1)
        begin = (jnp.zeros((x_BTE.shape[0], size)),) * self.cell.num_states
        y, _ = Layer(self.cell, size, self.compute, name="forward")(x_BTE, first_BT, begin)
        if not self.config.bidirectional:
            return y
        back = Layer(self.cell, size, self.compute, name="backward")
        z, _ = back(x_BTE[:, ::-1], last_BT[:, ::-1], begin)
        return jnp.concatenate([y, z[:, ::-1]], axis=-1)


class RecurrentSeq2SeqTrunk(nn.Module):
    cell: Cell
    config: RecurrentSeq2SeqConfig
    compute: ComputeConfig

    def setup(self) -> None:
        c, H, L = self.config, self.config.hidden_dim, self.config.num_layers
        self.tokens = embedding_table(self, "tokens", c.vocab_size, c.embed_dim, "vocab")
        flags = jnp.zeros((1, 1), bool)
        reader = BidirectionalLayer(self.cell, c, self.compute, parent=None)
        writer = Layer(self.cell, H, self.compute, parent=None)
        begin = (jnp.zeros((1, H)),) * self.cell.num_states
        fed = c.embed_dim + (H if c.input_feeding else 0)
        # The first of its own, since its input may be of another width.
        self.encoder_first = self.param("encoder_first", init_stack(reader, 1, _row(c.embed_dim), flags, flags))
        self.decoder_first = self.param("decoder_first", init_stack(writer, 1, _row(fed), flags, begin))
        if L > 1:
            self.encoder_rest = self.param("encoder_layers", init_stack(reader, L - 1, _row(H), flags, flags))
            self.decoder_rest = self.param("decoder_layers", init_stack(writer, L - 1, _row(H), flags, begin))
        draw = uniform(H)
        self.bridge = param(self, "bridge", draw, (H, L, H), ("embed", "layers", "hidden"))
        self.query = param(self, "query", draw, (H, H), ("embed", "hidden"))
        if c.attention == "additive":
            self.key = param(self, "key", draw, (H, H), ("embed", "hidden"))
            self.energy = param(self, "energy", draw, (H,), ("hidden",))
        self.combine = param(self, "combine", draw, (2, H, H), ("gates", "embed", "hidden"))
        if c.tied and c.embed_dim != H:
            self.project = param(self, "project", draw, (H, c.embed_dim), ("embed_in", "embed"))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        decoder_tokens: Int[Array, "B U"],
        decoder_segment_ids: Int[Array, "B U"],
        decoder_positions: Int[Array, "B U"],
        key: Key = None,
    ) -> Float[Array, "B U E"]:
        """Returns the decoder's states. A segment of the decoder reads the encoder's segment of the same number."""
        encoder_key, decoder_key = split_key(key, 2)
        states = self.encode_states(tokens, segment_ids, positions, encoder_key)
        memory = self._memory(states, segment_ids, decoder_segment_ids)
        cache = init_cache(self.cell, self.config, tokens.shape[0], 0, None)
        return self._write(decoder_tokens, decoder_segment_ids, decoder_positions, memory, cache, decoder_key)[0]

    def encode_states(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        key: Key = None,
    ) -> Float[Array, "B T H"]:
        """Returns the states of the encoder's last layer, forwards and backwards side by side."""
        c, compute = self.config, self.compute
        if (ways := compute.rules.size("context")) > 1:
            raise UserError(f"mesh.context={ways}: a recurrent network reads its rows in order; expected 1")
        first_key, rest_key = split_key(key, 2)
        layer = BidirectionalLayer(self.cell, c, compute, parent=None)
        begins = positions == 0
        ends = jnp.concatenate([segment_ids[:, 1:] != segment_ids[:, :-1], jnp.ones_like(begins[:, :1])], axis=1)

        def apply(params: Any, x: Any, k: Key) -> Any:
            return layer.apply({"params": params}, dropout(x, c.dropout, k), begins, ends)

        x = run_stack(apply, self.encoder_first, self._embed(tokens), first_key, compute)
        return run_stack(apply, self.encoder_rest, x, rest_key, compute) if c.num_layers > 1 else x

    def encode(self, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Memory:
        """Returns what `decode` reads of the texts."""
        states = self.encode_states(tokens, segment_ids, positions)
        return self._memory(states, segment_ids, jnp.ones_like(segment_ids[:, :1]))

    def decode(
        self,
        tokens: Int[Array, "R U"],
        segment_ids: Int[Array, "R U"],
        positions: Int[Array, "R U"],
        encoded: Memory,
        cache: Cache,
    ) -> tuple[Float[Array, "R U E"], Cache]:
        """Returns the decoder's states of the next tokens, and the cache with them in it."""
        return self._write(tokens, segment_ids, positions, encoded, cache, None)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        x = embedding_lookup(self.tokens, tokens, self.compute.rules).astype(self.compute.dtype)
        return constrain(x, ("batch", "length", "act_embed"), self.compute.rules)

    def _memory(self, states_BSH: Any, segment_ids_BS: Any, segments_BU: Any) -> Memory:
        """Args: segments_BU: of the decoder's columns, for each of which the text's two ends are looked up."""
        c, dtype = self.config, self.compute.dtype
        same = segments_BU[:, :, None] == segment_ids_BS[:, None, :]
        first = same.argmax(-1).astype(jnp.int32)
        last = same.shape[-1] - 1 - same[..., ::-1].argmax(-1).astype(jnp.int32)
        ends = take_columns(states_BSH, last)
        if c.bidirectional:
            half = c.hidden_dim // 2
            ends = jnp.concatenate([ends[..., :half], take_columns(states_BSH[..., half:], first)], axis=-1)
        begin = jnp.tanh(jnp.einsum("buh,hlk->bulk", ends, self.bridge.astype(dtype)).astype(jnp.float32))
        keys = states_BSH @ self.key.astype(dtype) if c.attention == "additive" else states_BSH
        states, keys = (constrain(x, ("batch", "kv_length", None), self.compute.rules) for x in (states_BSH, keys))
        return Memory(states, keys, segment_ids_BS, begin)

    def _write(
        self, tokens: Any, segment_ids: Any, positions: Any, memory: Memory, cache: Cache, key: Key
    ) -> tuple[Any, Cache]:
        """Reads the decoder's tokens: all columns at once or, with input feeding, one by one."""
        c = self.config
        column_key, output_key = split_key(key, 2)
        begin = jnp.repeat(memory.begin, tokens.shape[0] // memory.begin.shape[0], axis=0)
        begin = jnp.broadcast_to(begin, (*tokens.shape, *begin.shape[2:]))
        arrays = (self._embed(tokens), segment_ids, positions == 0, begin)
        if not c.input_feeding:
            y, cache = self._columns(*arrays, memory, cache, column_key)
        else:
            keys = None if column_key is None else jax.random.split(column_key, tokens.shape[1])

            def step(cache: Cache, inputs: Any) -> tuple[Cache, jax.Array]:
                column, k = inputs
                x, segments, restart, anew = (part[:, None] for part in column)
                y, cache = self._columns(x, segments, restart, anew, memory, cache, k)
                return cache, y[:, 0]

            columns = tuple(jnp.moveaxis(x, 1, 0) for x in arrays)
            cache, y = jax.lax.scan(step, cache, (columns, keys))
            y = jnp.moveaxis(y, 0, 1)
        y = dropout(y, c.dropout, output_key)
        if c.tied and c.embed_dim != c.hidden_dim:
            y = y @ self.project.astype(y.dtype)
        return constrain(y, ("batch", "length", "act_embed"), self.compute.rules), cache

    def _columns(
        self, x_RUE: Any, segments_RU: Any, restart_RU: Any, begin_RULH: Any, memory: Memory, cache: Cache, key: Key
    ) -> tuple[Any, Cache]:
        """Returns what attention gives at these columns, from the layers' states, and the cache after them."""
        c, compute = self.config, self.compute
        first_key, rest_key = split_key(key, 2)
        x = x_RUE
        if c.input_feeding:  # one column
            fed = jnp.where(restart_RU[..., None], 0.0, cache.fed[0][:, None])
            x = jnp.concatenate([x, fed.astype(x.dtype)], axis=-1)
        layer = Layer(self.cell, c.hidden_dim, compute, parent=None)
        # Of an LSTM the output begins with the text, its cell with 0.
        others = (jnp.zeros_like(begin_RULH[:, :, 0]),) * (self.cell.num_states - 1)

        def apply(one: Any, carry: Any, k: Key) -> Any:
            x, states = carry
            begin = (jax.lax.dynamic_index_in_dim(begin_RULH, one["index"], axis=2, keepdims=False), *others)
            before = tuple(s[one["index"]] for s in states)
            x, after = layer.apply({"params": one["params"]}, dropout(x, c.dropout, k), restart_RU, before, begin)
            put = [
                jax.lax.dynamic_update_index_in_dim(s, a, one["index"], 0) for s, a in zip(states, after, strict=True)
            ]
            return x, tuple(put)

        first = {"params": self.decoder_first, "index": jnp.arange(1, dtype=jnp.int32)}
        carry = run_stack(apply, first, (x, cache.states), first_key, compute)
        if c.num_layers > 1:
            rest = {"params": self.decoder_rest, "index": jnp.arange(1, c.num_layers, dtype=jnp.int32)}
            carry = run_stack(apply, rest, carry, rest_key, compute)
        h, states = carry
        own, read = self.combine.astype(h.dtype)
        y = jnp.tanh(h @ own + self._attend(h, segments_RU, memory) @ read)
        return y, Cache(states, y[None, :, -1].astype(jnp.float32))

    def _attend(self, h_RUH: jax.Array, segments_RU: jax.Array, memory: Memory) -> jax.Array:
        """Returns the mean of the encoder's states by attention; the decoder's rows of one text lie side by side."""
        rows = memory.segment_ids.shape[0]
        h = (h_RUH @ self.query.astype(h_RUH.dtype)).reshape(rows, -1, h_RUH.shape[-1])
        same = segments_RU.reshape(rows, -1)[:, :, None] == memory.segment_ids[:, None, :]
        if self.config.attention == "general":
            logits = jnp.einsum("buh,bsh->bus", h, memory.keys, preferred_element_type=jnp.float32)
        else:
            energy = self.energy.astype(h.dtype)

            @jax.checkpoint  # else [B, U, S, H] numbers are kept
            def one(h_BH: jax.Array) -> jax.Array:
                hidden = jnp.tanh(h_BH[:, None] + memory.keys)
                return jnp.einsum("bsh,h->bs", hidden, energy, preferred_element_type=jnp.float32)

            logits = jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(h, 1, 0)), 0, 1)
        weights = jax.nn.softmax(jnp.where(same, logits, jnp.finfo(jnp.float32).min), axis=-1)
        y = jnp.einsum("bus,bsh->buh", weights.astype(memory.states.dtype), memory.states)
        return y.reshape(h_RUH.shape)


def _row(width: int) -> jax.Array:
    return jnp.zeros((1, 1, width))


def init_cache(cell: Cell, config: RecurrentSeq2SeqConfig, rows: int, length: int, dtype: Any) -> Cache:
    """Returns the decoder's states before the first token."""
    del length, dtype  # the states do not grow, and stay in float32
    states = (jnp.zeros((config.num_layers, rows, config.hidden_dim)),) * cell.num_states
    return Cache(states, jnp.zeros((1, rows, config.hidden_dim)))
