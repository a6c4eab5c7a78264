"""How far to trust a rate or a mean of few episodes."""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054
"""Of a normal distribution, 95 % lie within so many standard deviations."""
RESAMPLES = 10_000


def wilson(successes: float, episodes: float) -> tuple[float, float]:
    """95 % interval of a success rate, in [0, 1]. Unlike rate ± error, it also holds for 0 and all successes.

    Of an effective number of episodes (see `independent`), neither need be whole.

    Raises:
        ValueError: unless 0 <= successes <= episodes and there is an episode.
    """
    if not 0 <= successes <= episodes or not episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes is no success rate")
    rate = successes / episodes
    scale = 1 + Z**2 / episodes
    centre = (rate + Z**2 / (2 * episodes)) / scale
    half = Z / scale * math.sqrt(rate * (1 - rate) / episodes + (Z / (2 * episodes)) ** 2)
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def independent(outcomes: np.ndarray) -> float:
    """So many independent episodes would say as much of the success rate as `outcomes` (S, n) do: S policies, each from
    the same n starts. What is hard for one is hard for the others, so that there are fewer than S n.

    The rate's variance is that of the starts' means over n, an independent episode's rate (1 - rate): the design effect of
    Kish, Survey Sampling (1965), with starts as clusters.
    """
    policies, starts = outcomes.shape
    rate, variance = outcomes.mean(), outcomes.mean(axis=0).var()
    if rate in (0, 1):
        return float(starts)
    return float(starts * (policies if variance == 0 else min(rate * (1 - rate) / variance, policies)))


def bootstrap_mean(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean: percentiles of the means of resamples. The same values give the same interval."""
    if not values:
        raise ValueError("no values, so no mean")
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
