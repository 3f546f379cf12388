"""What a model says of one class: training calibrates it, and mapping turns it into probabilities."""

import torch
from torch import Tensor


def log_odds(logits: Tensor, positive: int) -> Tensor:
    """Log-odds of one class against all others: its logit minus the logsumexp of the other logits.

    Args:
        logits: (batch, classes, rows, columns).
        positive: id of the class.

    Returns:
        (batch, rows, columns)
    """
    others = [index for index in range(logits.shape[1]) if index != positive]
    rest = logits[:, others[0]] if len(others) == 1 else torch.logsumexp(logits[:, others], dim=1)
    return logits[:, positive] - rest
