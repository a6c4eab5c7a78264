"""Ridge regression in closed form, in float64. How strong the penalty is, is chosen on held-out rows for each target."""

from collections.abc import Mapping

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**exponent for exponent in range(-7, 4))
"""Of the penalty, per row, on features of unit variance (those that are not faint)."""
FAINT = 0.1
"""Features that vary less than so much of what is typical are not scaled up: a pixel that hardly changed in the rows to fit
would outweigh all others in a row where it does."""
HELD_OUT = 0.2
"""Share of the rows, the last ones, on which it is chosen."""


class Ridge:
    """All ridge regressions on the same features (n, F): one decomposition serves every strength and every target."""

    def __init__(self, features: Tensor) -> None:
        self.mean = features.mean(0)
        std = features.std(0, correction=0)
        typical = std.square().mean().sqrt()
        self.scale = std.maximum(FAINT * typical) if typical > 0 else torch.ones_like(std)
        self.u, self.s, self.v = torch.linalg.svd(self.standardised(features), full_matrices=False)

    def standardised(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def predict(self, targets: Tensor, strength: float, unseen: Tensor) -> Tensor:
        """Fit targets (n, t), and predict those of `unseen` features (m, F): (m, t)."""
        mean = targets.mean(0)
        shrunk = self.s / (self.s.square() + strength * len(targets))
        weights = self.v.T @ (shrunk[:, None] * (self.u.T @ (targets - mean)))
        return self.standardised(unseen) @ weights + mean


def regress(
    features: Tensor, targets: Mapping[str, Tensor], unseen: Tensor
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Predictions (m, t) of each of the targets (n, t) for `unseen` features (m, F), and the strengths chosen.

    Args:
        features: (n, F) of the training rows, n at least 5. Rows of one episode stand together, so that the last fifth
            is other episodes.
    """
    features, unseen = features.double(), unseen.double()
    first = round(len(features) * (1 - HELD_OUT))
    part, whole = Ridge(features[:first]), Ridge(features)
    predictions, chosen = {}, {}
    for name, values in targets.items():
        values = values.double()

        def error(strength: float, values: Tensor = values) -> float:
            predicted = part.predict(values[:first], strength, features[first:])
            return (predicted - values[first:]).square().sum().item()

        chosen[name] = min(STRENGTHS, key=error)
        predictions[name] = whole.predict(values, chosen[name], unseen)
    return predictions, chosen


def r_squared(truth: Tensor, predicted: Tensor) -> float:
    """Share of the variance of all columns of `truth` (m, t) together that is explained: 1 is perfect, 0 no better than
    to say the mean, below 0 worse."""
    truth, predicted = truth.double(), predicted.double()
    missed = (truth - predicted).square().sum()
    return (1 - missed / (truth - truth.mean(0)).square().sum()).item()
