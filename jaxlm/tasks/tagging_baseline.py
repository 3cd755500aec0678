"""The tags that a look at the words alone gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence


def most_frequent_tags(
    train: Iterable[tuple[Sequence[str], Sequence[int]]], asked: Iterable[Sequence[str]], unseen: int
) -> Iterator[list[int]]:
    """Yields, for each sequence of words that is asked, the tag that each word has most often in training.

    Args:
      train: words and a tag for each.
      unseen: tag of words that training does not have.
    """
    counts: dict[str, Counter[int]] = {}
    for words, tags in train:
        for word, tag in zip(words, tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    likeliest = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    for words in asked:
        yield [likeliest.get(word, unseen) for word in words]
