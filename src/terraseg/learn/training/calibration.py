"""Threshold and temperature of a model, fitted on the validation split in one pass and in bounded memory."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from terraseg.contracts.dataset import IGNORE

_log = logging.getLogger(__name__)

_STEPS = 250
"""Probabilities are kept in steps of 1/250, like those of the maps (`terraseg.contracts.product.PROBABILITY_SCALE`)."""

_TEMPERATURES = torch.logspace(-2, 2, 33, base=2)
"""1/4 to 4 in ratios of 2^(1/8), 1 among them."""


@dataclass(frozen=True)
class Calibration:
    """Temperature and threshold fitted on the validation split.

    Attributes:
        temperature: divisor of the logits (Guo et al. 2017, On Calibration of Modern Neural Networks).
        threshold: lowest probability, at that temperature, of a pixel of the class.
        iou: of the class at that threshold.
    """

    temperature: float
    threshold: float
    iou: float


class CalibrationCounts:
    """Counts over a validation split, from which `fit` takes the best temperature and threshold.

    For each of 33 temperatures: the likelihood, and a histogram of the class's probabilities by truth.

    Args:
        positive: id of the class.
        device: where the logits are.
    """

    def __init__(self, *, positive: int, device: torch.device | str = "cpu") -> None:
        self.positive = positive
        self._temperatures = _TEMPERATURES.to(device)
        self._nll = torch.zeros(len(_TEMPERATURES), dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(_TEMPERATURES), 2, _STEPS + 1, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, truth: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (B, classes, H, W), at temperature 1.
            truth: (B, H, W) class ids; `IGNORE` is left out.
        """
        known = truth != IGNORE
        pixels, classes = logits.movedim(1, -1)[known].float(), truth[known]
        row = (classes == self.positive).long() * (_STEPS + 1)
        for index, temperature in enumerate(self._temperatures):
            scaled = (pixels / temperature).log_softmax(1)
            self._nll[index] += nn.functional.nll_loss(scaled, classes, reduction="sum").double()
            level = (scaled[:, self.positive].exp() * _STEPS).round().long()
            self._counts[index] += torch.bincount(row + level, minlength=2 * (_STEPS + 1)).reshape(2, -1)

    def fit(self) -> Calibration:
        """The temperature of the highest likelihood, and the threshold of the highest IoU at it.

        If the optimum is at either end of the range, the split does not determine it (no errors, or nothing but
        errors), and the temperature stays 1. Without a pixel of the class the threshold stays 0.5. Both are logged.

        Among equally good thresholds the middle one is chosen: the lowest would map anything unlike the split.
        """
        index = int(self._nll.argmin())
        if index in (0, len(_TEMPERATURES) - 1):
            _log.warning("The validation split does not determine the temperature; it stays 1.")
            index = len(_TEMPERATURES) // 2
        others, own = self._counts[index].double().cpu()
        if own.sum() == 0:
            _log.warning("The validation split has no pixel of class %d; the threshold stays 0.5.", self.positive)
            return Calibration(float(_TEMPERATURES[index]), 0.5, math.nan)
        # hits[k] and alarms[k]: pixels at or above level k
        hits, alarms = own.flip(0).cumsum(0).flip(0), others.flip(0).cumsum(0).flip(0)
        iou = (hits / (own.sum() + alarms))[1:]
        best = (iou == iou.max()).nonzero().flatten() + 1
        level = int(best[len(best) // 2])
        # From here a probability rounds to the level: maps apply the threshold before they round. It stays below 1.
        return Calibration(float(_TEMPERATURES[index]), (level - 0.5) / _STEPS, float(iou[level - 1]))
