"""From predictions to numbers that can be trusted: metrics, intervals, figures, report."""
