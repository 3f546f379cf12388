"""The two tables of a comparison: how good each experiment is with all labels, and what it costs."""

import pandas as pd

from terraseg.contracts.comparison import Tables

PERFORMANCE = {"iou": "IoU", "f1": "F1", "precision": "Precision", "recall": "Recall", "miou": "mIoU"}
"""Figures of the class, and the mean IoU last: by column of `Tables.by_fraction`, with their headings."""


def performance(tables: Tables) -> pd.DataFrame:
    """Rows of `Tables.by_fraction` at each experiment's largest finished fraction, best IoU first."""
    rows = tables.by_fraction
    largest = rows[rows["fraction"] == rows.groupby("experiment")["fraction"].transform("max")]
    return largest.sort_values("iou", ascending=False, kind="stable")


def efficiency(tables: Tables) -> pd.DataFrame:
    """One row an experiment, in the order of `performance`: means over the cells at its largest finished fraction.

    Columns: parameters, trainable_parameters, best_epoch and best_step (of the checkpoint with the best validation IoU,
    after which more training brought nothing), epochs, hours, images_per_second, peak_memory_gb, device; and of
    `Tables.labels` where it is whole.
    """
    measured = ["parameters", "trainable_parameters", "best_epoch", "epochs", "best_step", "steps", "hours"]
    measured += ["images_per_second", "peak_memory_gb"]
    keys = performance(tables)[["experiment", "fraction"]]
    cells = keys.merge(tables.cells, on=["experiment", "fraction"], how="left")
    groups = cells.groupby("experiment", sort=False)
    means = groups[measured].mean()
    means["device"] = groups["device"].agg(lambda names: ", ".join(sorted(set(names))))
    return means.reset_index().merge(tables.labels.drop(columns="comparison"), on="experiment", how="left")
