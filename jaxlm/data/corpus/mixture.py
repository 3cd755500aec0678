"""Assigns the rows of a mixture to its sources: exact shares, computed for any row without those before it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jaxlm.errors import UserError

_PERIOD = 1000  # rows
_FEWEST, _LONGEST = 20, 10**6  # rows of the rarest source in a period, for which the period is made longer, up to this


class Mixture:
    """Assigns rows to sources in proportion to the weights of the sources.

    Every period of 1,000 rows (more where a source would have fewer than 20 of them) holds the same number of rows of
    each source, rounded by largest remainder, in an order drawn from (seed, period).

    Attributes:
      counts: int64 [sources]: rows of each in a period.
    Raises:
      UserError: a source with a share of less than a fifty-thousandth.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        shares = np.asarray(weights, np.float64) / np.sum(weights)
        self._period = max(_PERIOD, int(np.ceil(_FEWEST / shares.min())))
        if self._period > _LONGEST:
            rarest = int(shares.argmin())
            raise UserError(
                f"mixture: source {rarest + 1} has a weight of {weights[rarest]:g}, which is a share of "
                f"{shares[rarest]:.2g} of the rows; expected at least {_FEWEST / _LONGEST:g}. Raise its weight or "
                "leave it out"
            )
        self._seed = seed
        self.counts = _largest_remainder(shares, self._period)
        self._arranged = functools.lru_cache(maxsize=2)(self._arrange)

    def locate(self, draw: int) -> tuple[int, int]:
        """Returns the source of row `draw` of the mixture, and its number among that source's rows, both from 0."""
        if len(self.counts) == 1:
            return 0, draw
        period, place = divmod(draw, self._period)
        sources, ranks = self._arranged(period)
        source = int(sources[place])
        return source, period * int(self.counts[source]) + int(ranks[place])

    def _arrange(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns int64 [period] each: source of every row, and its number among that source's rows of the period."""
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        sources = np.random.default_rng([self._seed, period, 0x3A]).permutation(sources)
        ranks = np.empty_like(sources)
        for source, count in enumerate(self.counts.tolist()):
            ranks[sources == source] = np.arange(count)
        return sources, ranks


def _largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    left = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return counts
