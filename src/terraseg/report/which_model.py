"""Which model to use for a number of labelled chips, how sure that is, and how the models perform and cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from terraseg.assess.metrics.intervals import FEW_UNITS
from terraseg.assess.metrics.seeds import LEAST_SEEDS
from terraseg.contracts.comparison import Tables

LABELLED_CHIPS = 50
"""Default number of labelled chips."""

SURE = 0.05
"""Corrected p below which two experiments differ significantly."""


@dataclass(frozen=True)
class Choice:
    """The best experiment at one fraction.

    Attributes:
        chips: number of labelled chips, train and validation together, mean over seeds.
        fraction: of the ground of train.
        best: the row of `Tables.by_fraction` with the highest IoU.
        against: rows of `Tables.pairs` that compare it with the others, the smallest difference first.
    """

    chips: float
    fraction: float
    best: dict[str, Any]
    against: tuple[dict[str, Any], ...]

    @property
    def alike(self) -> tuple[dict[str, Any], ...]:
        """Rows of `against` without a significant difference."""
        return tuple(row for row in self.against if not is_significant(row))


@dataclass(frozen=True)
class Answer:
    """Answer to "which model should I use?".

    Attributes:
        comparison: its name.
        chips: number of labelled chips of the answer, the one nearest to the request that was measured.
        labels: chips of train and of validation, such as "5 train + 57 validation".
        verdict: one sentence.
        evidence: sentences that support it.
    """

    comparison: str
    chips: float
    labels: str
    verdict: str
    evidence: tuple[str, ...]


def is_significant(pair: dict[str, Any]) -> bool:
    """Whether the difference in a row of `Tables.pairs` is significant after the correction."""
    return pd.notna(pair["p_holm"]) and bool(pair["p_holm"] < SURE)


def choices(tables: Tables) -> list[Choice]:
    """The best experiment at each fraction, the fewest labels first."""
    found = []
    for fraction, rows in tables.by_fraction.dropna(subset="iou").groupby("fraction"):
        pairs = tables.pairs[tables.pairs["fraction"] == fraction]
        best = rows[~rows["experiment"].isin(pairs["other"])].iloc[0].to_dict()  # also right for equal IoUs
        pairs = pairs[pairs["better"] == best["experiment"]]
        against = pairs.sort_values("gain").to_dict("records")
        found.append(Choice(float(best["labelled_chips"]), float(str(fraction)), best, tuple(against)))
    return found


def answer(tables: Tables, *, labelled_chips: int = LABELLED_CHIPS) -> Answer | None:
    """Which experiment to use with a number of labelled chips; None if no fraction is finished.

    Args:
        tables: of the comparison.
        labelled_chips: the answer is for the measured number that is nearest, as a ratio.
    """
    found = choices(tables)
    if not found:
        return None
    choice = min(found, key=lambda one: abs(math.log(one.chips / labelled_chips)))
    return Answer(
        comparison=tables.name,
        chips=choice.chips,
        labels=f"{choice.best['train_chips']:.0f} train + {choice.best['val_chips']:.0f} validation",
        verdict=_verdict(tables, choice),
        evidence=(
            _score(tables, choice),
            *_rivals(tables, choice),
            *_cheapest(tables, choice),
            _sureness(tables, choice),
        ),
    )


def _verdict(tables: Tables, choice: Choice) -> str:
    name, alike = choice.best["experiment"], [str(row["other"]) for row in choice.alike]
    if not choice.against:
        return f"Only {name} was measured with this number of labels: there is no choice."
    untuned = untuned_note(tables)
    unknown = next((row["no_p"] for row in choice.against if pd.isna(row["p_holm"])), None)
    if unknown is not None:
        return (
            f"No verdict about the methods ({unknown}): of these trained models{untuned}, {name} has the highest IoU."
        )
    if not alike:
        return f"Use {name}: it is better than {_listed([row['other'] for row in choice.against])}{untuned}."
    return f"{name} has the highest IoU, but the difference to {_listed(alike)} is not significant{untuned}."


def untuned_note(tables: Tables) -> str:
    """What every verdict must say of experiments without a search for hyperparameters; empty after one."""
    return " (learning rates untuned)" if tables.untuned else ""


def _score(tables: Tables, choice: Choice) -> str:
    best = choice.best
    weights = tables.cells.loc[tables.cells["experiment"] == best["experiment"], "weights"].iloc[0]
    mean = f"a mean IoU over {best['seeds']:.0f} seeds" if best["seeds"] > 1 else "an IoU"
    return f"{best['experiment']} (weights: {weights}) has {mean} of {_estimate(best, 'iou', sign='')}."


def _rivals(tables: Tables, choice: Choice) -> list[str]:
    rivals = []
    for row in choice.against:
        seeds = f"ahead in {row['seeds_ahead']:.0f} of {row['seeds']:.0f} seed{'s' * (row['seeds'] != 1)}"
        gain = f"{row['other']}{untuned_note(tables)}: IoU {_estimate(row, 'gain', sign='+')}"
        if pd.isna(row["p_holm"]):
            rivals.append(f"These trained models against those of {gain}, no p ({row['no_p']}), {seeds}.")
        else:
            how = "Better than" if is_significant(row) else "Not significantly better than"
            rivals.append(f"{how} {gain}, p = {row['p_holm']:.3f}, {seeds}.")
    return rivals


def _cheapest(tables: Tables, choice: Choice) -> list[str]:
    """The experiment that trains fastest, if several are equally good."""
    if not choice.alike:
        return []
    names = [choice.best["experiment"], *(row["other"] for row in choice.alike)]
    cells = tables.cells[(tables.cells["fraction"] == choice.fraction) & tables.cells["experiment"].isin(names)]
    hours = cells.groupby("experiment")["hours"].mean()
    return [f"Of these, {hours.idxmin()} trained fastest: {duration(float(hours.min()))}."]


def _sureness(tables: Tables, choice: Choice) -> str:
    units, best = int(tables.cells["units"].iloc[0]), choice.best
    rough = " These are few, so every interval is rough." if units < FEW_UNITS else ""
    over = str(tables.cells["interval_over"].iloc[0])
    alone = "" if best["seeds"] >= LEAST_SEEDS else ", so they are about these trained models, not about the methods"
    pairs = int((tables.pairs["fraction"] == choice.fraction).sum())
    corrected = f" p is corrected for the {pairs} pairs at this number of labels (Holm)." if pairs > 1 else ""
    return (
        f"How sure: the 95 % intervals are over {over}{alone}; there are {units} units of test ground.{rough}"
        f"{corrected} "
        f"The IoU of {best['experiment']} is {best['iou_least_seed']:.3f} to {best['iou_most_seed']:.3f} by seed "
        f"({best['seeds']:.0f} seed{'s' * (best['seeds'] != 1)}). "
        "Other ground, sensors and dates were not tested."
    )


def _estimate(row: dict[str, Any], name: str, *, sign: str) -> str:
    value = f"{row[name]:{sign}.3f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{value} (no interval)" if pd.isna(low) else f"{value} [{low:{sign}.3f}, {high:{sign}.3f}]"


def duration(hours: float) -> str:
    """Hours as text, or minutes below one hour."""
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _listed(names: Sequence[object]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def performance(tables: Tables) -> pd.DataFrame:
    """Rows of `Tables.by_fraction` at the largest finished fraction of each experiment, highest IoU first."""
    rows = tables.by_fraction
    largest = rows[rows["fraction"] == rows.groupby("experiment")["fraction"].transform("max")]
    return largest.sort_values("iou", ascending=False, kind="stable")


def efficiency(tables: Tables) -> pd.DataFrame:
    """One row per experiment, in the order of `performance`: means over the cells at its largest finished fraction.

    Columns: parameters, trainable_parameters, best_epoch and best_step (of the highest validation IoU), epochs, steps,
    hours, images_per_second, peak_memory_gb, architecture, device; and those of `Tables.labels` if all fractions are
    finished.
    """
    measured = ["parameters", "trainable_parameters", "best_epoch", "epochs", "best_step", "steps", "hours"]
    measured += ["images_per_second", "peak_memory_gb"]
    keys = performance(tables)[["experiment", "fraction"]]
    cells = keys.merge(tables.cells, on=["experiment", "fraction"], how="left")
    cells["architecture"] = cells.get("architecture", "")  # absent from older files
    groups = cells.groupby("experiment", sort=False)
    means = groups[measured].mean()
    means["architecture"] = groups["architecture"].first()
    means["device"] = groups["device"].agg(lambda names: ", ".join(sorted(set(names))))
    return means.reset_index().merge(tables.labels.drop(columns="comparison"), on="experiment", how="left")
