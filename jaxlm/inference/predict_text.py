"""A generative model applied to rows: each prompt continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError
from jaxlm.inference.generate import generate
from jaxlm.models import Model
from jaxlm.tasks.language_model import SamplesConfig
from jaxlm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextPredictor:
    """A language model's checkpoint, ready to continue texts."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    settings: SamplesConfig
    column: str = "text"
    seed: int = 0
    prefix: bool = False
    """Prompts are read in both directions."""

    def predict(self, rows: Sequence[dict[str, Any]], name: str, first: int = 1) -> list[dict[str, Any]]:
        """Returns the rows, each with `prediction`: {"text": what the model writes behind the prompt}.

        Args:
          name, first: the rows' source and the number of the first, for errors.
        Raises:
          UserError: a row without the prompt column, or with one that holds no text.
        """
        prompts = []
        for line, row in enumerate(rows, first):
            if self.column not in row:
                raise UserError(f"{name}, row {line}: no column {self.column!r}; it has: {', '.join(row) or 'none'}")
            prompt = self.tokenizer.encode_prompt(str(row[self.column]))
            if not prompt:
                raise UserError(f"{name}, row {line}: {self.column} is empty; expected the beginning of a text")
            prompts.append(prompt)
        written = generate(
            self.model,
            self.params,
            prompts,
            max_new_tokens=self.settings.tokens,
            temperature=self.settings.temperature,
            top_k=self.settings.top_k,
            top_p=self.settings.top_p,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id or 0,
            seed=self.seed,
            prefix=self.prefix,
        )
        texts = (self.tokenizer.continuation(prompt, new) for prompt, new in zip(prompts, written, strict=True))
        return [{**row, "prediction": {"text": text}} for row, text in zip(rows, texts, strict=True)]
