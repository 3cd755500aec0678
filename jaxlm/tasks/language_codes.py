"""Language codes: the tokens by which a model such as mBART-50 is told from which language into which it translates."""

from __future__ import annotations

import re

import numpy as np

from jaxlm.errors import UserError, did_you_mean
from jaxlm.tokenizer.tokenizer import Tokenizer

_CODE = re.compile(r"[a-z]{2,3}_[A-Za-z]{2,4}|__[a-z_]+__|>>[A-Za-z_]+<<")
"""Tokens that are codes: mBART's `de_DE`, NLLB's `deu_Latn`, M2M100's `__de__`, Marian's `>>deu<<`."""


def find_code(tokenizer: Tokenizer, code: str, key: str) -> int:
    """Returns the token of a language.

    Args:
      code: as the tokenizer spells it, or its part before the country or without marks: `de_DE`, `de`.
      key: config key, for errors.
    Raises:
      UserError: the tokenizer has no such code, or several.
    """
    for spelled in (code, f"__{code}__", f">>{code}<<"):
        if _CODE.fullmatch(spelled) and (found := tokenizer.id(spelled)) is not None:
            return found
    known = sorted(token for token in tokenizer.tokens(tokenizer.special_ids) if _CODE.fullmatch(token))
    if not known:
        raise UserError(
            f"{key}={code}: the tokenizer has no language codes; leave it out (T5 is told the languages by "
            "task.prefix, such as 'translate English to German: ')"
        )
    meant = [token for token in known if token.startswith(f"{code}_")]
    if len(meant) == 1:
        found = tokenizer.id(meant[0])
        assert found is not None
        return found
    listed = ", ".join(known[:60]) + (", ..." if len(known) > 60 else "")
    raise UserError(f"{key}={code}: the tokenizer has no such language; it has: {listed}{did_you_mean(code, known)}")


def affixes(tokenizer: Tokenizer, code: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the special tokens before and after a text of a language, int32 each.

    The code stands where the tokenizer puts that of its own language, else in front.
    """
    before, after = tokenizer.special_token_affixes
    if code is None:
        return before, after
    first, last = ([code if _is_code(tokenizer, i) else i for i in part.tolist()] for part in (before, after))
    if code not in (*first, *last):
        first = [code, *first]
    return np.asarray(first, np.int32), np.asarray(last, np.int32)


def _is_code(tokenizer: Tokenizer, token: int) -> bool:
    return bool(_CODE.fullmatch(tokenizer.tokens([token])[0]))
