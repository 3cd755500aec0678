"""Texts translated into another language and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxlm.data.augmentation.pieces import Piece, join_pieces
from jaxlm.data.augmentation.rewriting import Draft
from jaxlm.errors import UserError
from jaxlm.inference.predict import Predictor, open_predictor
from jaxlm.tasks.text_config import WritingConfig


@dataclass
class BackTranslation:
    """Says a text otherwise: one model translates it, another one translates that back.

    Sennrich et al., "Improving Neural Machine Translation Models with Monolingual Data" (2016, arXiv:1511.06709); as an
    augmentation of labelled texts, Xie et al., "Unsupervised Data Augmentation" (2020, arXiv:1904.12848), which draws
    the words instead of searching for the best ones, so that copies differ.

    Attributes:
      written: texts so far, which tell the draws of copies apart.
    """

    there: Predictor
    back: Predictor
    written: int = 0

    def rewrite(self, drafts: Sequence[Draft]) -> list[list[Piece]]:
        texts = [join_pieces(draft.pieces)[0] for draft in drafts]
        usable = [i for i, text in enumerate(texts) if text.strip()]
        foreign = _write(self.there, [texts[i] for i in usable], self.written)
        again = dict(zip(usable, _write(self.back, [text or "" for text in foreign], self.written), strict=True))
        self.written += len(usable)
        return [
            [Piece(new, draft.pieces[0].gap)] if (new := again.get(i)) else list(draft.pieces)
            for i, draft in enumerate(drafts)
        ]


def open_back_translation(there: str, back: str, settings: Sequence[str]) -> BackTranslation:
    """Opens two models that write.

    Args:
      there, back: runs, HF-format directories or hub ids.
      settings: key=value of the section `generation`, without its name.
    Raises:
      UserError: no model there, or one that writes no text; settings that do not exist.
    """
    opened = []
    for key, name in (("--model", there), ("--back-model", back)):
        predictor = open_predictor(name, overrides=[f"generation.{setting}" for setting in settings])
        if not isinstance(predictor.trained.setup.config.task, WritingConfig):
            kind = predictor.trained.setup.config.task.kind
            raise UserError(
                f"{key} {name}: a model of task.kind={kind} translates nothing; expected a translation model"
            )
        opened.append(predictor)
    return BackTranslation(*opened)


def _write(predictor: Predictor, texts: Sequence[str], first: int) -> list[str | None]:
    """What a model writes for each text; None where it cannot (a text longer than it reads).

    Args:
      first: number of the first text.
    """
    task = predictor.trained.setup.config.task
    assert isinstance(task, WritingConfig)
    records = [(number, dict.fromkeys(task.columns, text)) for number, text in enumerate(texts, first + 1)]
    answers = predictor.answer(records, "the texts", first + 1) if records else ()
    return [row["prediction"]["text"] if "prediction" in row else None for row in answers]
