"""From predictions and ground truth to results: metrics with intervals."""
