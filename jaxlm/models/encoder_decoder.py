"""The trunk of a Transformer with an encoder and a decoder: which of its two stacks reads what.

Shape letters: B rows, R rows of the decoder, T encoder length, U decoder length, D embed.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlm.nn.attention import KVCache
from jaxlm.nn.cross_attention import Encoded, States
from jaxlm.nn.layers import ComputeConfig, Key, embedding_lookup, split_key


class EncoderDecoderTrunk(nn.Module):
    """A family's `setup` gives `tokens`, the table [V, D] of both sides, and the stacks `encoder` and `decoder`.

    A stack takes embedded tokens, segment ids, positions (None where the family counts none), what a decoder reads of
    the encoder, a key of dropout and a cache; it returns states and cache. The decoder's `project` makes `Encoded`.
    """

    config: Any
    compute: ComputeConfig

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        decoder_tokens: Int[Array, "B U"],
        decoder_segment_ids: Int[Array, "B U"],
        positions: Int[Array, "B T"] | None = None,
        decoder_positions: Int[Array, "B U"] | None = None,
        key: Key = None,
    ) -> Float[Array, "B U D"]:
        """Returns the decoder's states. A segment of the decoder reads the encoder's segment of the same number."""
        encoder_key, decoder_key = split_key(key, 2)
        context = self.encode_states(tokens, segment_ids, positions, encoder_key)
        x = embedding_lookup(self.tokens, decoder_tokens, self.compute.rules)
        return self.decoder(x, decoder_segment_ids, decoder_positions, context, decoder_key)[0]

    def encode(
        self, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Encoded:
        """Returns what `decode` reads of the texts."""
        return self.decoder.project(self.encode_states(tokens, segment_ids, positions))

    def decode(
        self,
        tokens: Int[Array, "R U"],
        segment_ids: Int[Array, "R U"],
        positions: Int[Array, "R U"],
        encoded: Encoded,
        cache: KVCache,
    ) -> tuple[Float[Array, "R U D"], KVCache | None]:
        """Returns the decoder's states of the next tokens, and the cache with them in it."""
        x = embedding_lookup(self.tokens, tokens, self.compute.rules)
        return self.decoder(x, segment_ids, positions, encoded, cache=cache)

    def encode_states(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        key: Key = None,
    ) -> States:
        """Returns the encoder's states."""
        x = embedding_lookup(self.tokens, tokens, self.compute.rules)
        return States(self.encoder(x, segment_ids, positions, key=key)[0], segment_ids)
