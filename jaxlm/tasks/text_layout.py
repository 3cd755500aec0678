"""What stands around the texts of a task that writes, how long they may be, and what ends them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tasks.records import Context, Generation
from jaxlm.tasks.text_config import WritingConfig
from jaxlm.tasks.text_template import SOURCE, Template

_DECODER_END = "\n"
"""What stands between the text that a decoder alone reads and the one that it writes, unless a template says."""


@dataclass(frozen=True)
class TextLayout:
    """What stands around texts, and how long they may be.

    Attributes:
      template: makes the text that is read out of a row.
      source: the column that a text too long for a decoder loses words of.
      source_affixes, target_affixes: special tokens before and after; int32 each.
      end_id: the token that ends a target.
      start_id: the token that the decoder of an encoder-decoder reads first; None: there is a decoder alone.
      max_length, max_target_length: in tokens, special ones included.
      forced_id: the token that every text begins with after the start, as the code of its language; None: any.
    """

    template: Template
    source: str
    source_affixes: tuple[np.ndarray, np.ndarray]
    target_affixes: tuple[np.ndarray, np.ndarray]
    end_id: int
    start_id: int | None
    max_length: int
    max_target_length: int
    forced_id: int | None = None

    def __post_init__(self) -> None:
        for key, length, around in (
            ("max_length", self.max_length, self.source_affixes),
            ("max_target_length", self.max_target_length, self.target_affixes),
        ):
            if length <= (special := sum(map(len, around))):
                raise UserError(
                    f"data.{key}={length}: no room for text beside {special} special tokens; expected at least "
                    f"{special + 1}"
                )

    def generation(self, settings: Generation) -> Generation:
        """Returns the settings with what the layout says: the end of texts, their length unless it is set, the token
        that they begin with."""
        forced = settings.forced_bos_id if self.forced_id is None else self.forced_id
        ends = tuple(sorted({*settings.eos_ids, self.end_id}))
        return settings.limited(self.max_target_length)._replace(eos_ids=ends, forced_bos_id=forced)

    def known(self) -> dict[str, Any]:
        """Returns what an export keeps of it, so that the model can be applied by itself; {} where the template has
        other columns than the source."""
        template = self.template.spelled(self.source)
        if template is None:
            return {}
        affixes = [part.tolist() for part in self.source_affixes]
        return {"template": template, "source_affixes": affixes, "max_length": self.max_length}

    def as_trained(self, known: Any) -> TextLayout:
        """Returns the layout with what `known` returned.

        Raises:
          UserError: the checkpoint's config.json holds something else.
        """
        try:
            before, after = (np.asarray(part, np.int32) for part in known["source_affixes"])
            template = Template.parse(known["template"], self.source)
            length = int(known.get("max_length", self.max_length))  # absent from older exports
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"config.json: text_to_text: expected what an export writes, found {known!r:.80}"
            ) from error
        return replace(self, template=template, source_affixes=(before, after), max_length=length)


def make_layout(config: WritingConfig, context: Context) -> TextLayout:
    """Returns what config and tokenizer say.

    Raises:
      UserError: a tokenizer that ends no text; lengths that leave no room for one.
    """
    tokenizer, seq2seq = context.tokenizer, context.head == "seq2seq_lm"
    before, after = tokenizer.special_token_affixes
    end = tokenizer.eos_id if tokenizer.eos_id is not None else int(after[-1]) if len(after) else None
    if end is None:
        raise UserError(
            f"task.kind={config.kind}: the tokenizer has no eos token, by which the end of a text is learned; "
            "expected one that has"
        )
    start = context.decoder_start_id if context.decoder_start_id is not None else tokenizer.pad_id or 0
    text = config.template
    if text is None:
        literal = config.prefix.replace("{", "{{").replace("}", "}}")
        text = f"{literal}{{{SOURCE}}}{'' if seq2seq else _DECODER_END}"
    alone = np.asarray([end], np.int32)
    length = context.data.max_length
    return TextLayout(
        Template.parse(text, config.source),
        config.source,
        source_affixes=(before, after) if seq2seq else (before, after[:0]),
        target_affixes=(before, after if len(after) else alone) if seq2seq else (before[:0], alone),
        end_id=end,
        start_id=start if seq2seq else None,
        max_length=length,
        max_target_length=context.data.max_target_length or length,
    )
