"""Which model to use with so many labelled chips, and how sure that is: in plain words, from a comparison's tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from terraseg.contracts.comparison import Tables

LABELLED_CHIPS = 50
"""What is few labels, where nobody says another number."""

SURE = 0.05
"""Corrected p below which two experiments are told apart."""

_FEW_UNITS = 30
"""Below this many cells an interval is told to be rough."""


@dataclass(frozen=True)
class Choice:
    """What a comparison says at one fraction.

    Attributes:
        chips: labelled ones, mean of the seeds.
        fraction: of the ground of train.
        best: the row of `Tables.by_fraction` with the highest IoU.
        against: the rows of `Tables.pairs` of the best, the nearest experiment first.
    """

    chips: float
    fraction: float
    best: dict[str, Any]
    against: tuple[dict[str, Any], ...]

    @property
    def alike(self) -> tuple[dict[str, Any], ...]:
        """Rows of `against` that are not told apart from the best."""
        return tuple(row for row in self.against if not told_apart(row))


@dataclass(frozen=True)
class Answer:
    """To "which model should I use?".

    Attributes:
        comparison: its name.
        chips: labelled ones that it holds for: the measured number nearest to the one that was asked for.
        verdict: one sentence.
        evidence: the sentences that it stands on.
    """

    comparison: str
    chips: float
    verdict: str
    evidence: tuple[str, ...]


def told_apart(pair: dict[str, Any]) -> bool:
    """Whether the difference of a row of `Tables.pairs` holds after the correction."""
    return pd.notna(pair["p_holm"]) and bool(pair["p_holm"] < SURE)


def choices(tables: Tables) -> list[Choice]:
    """The best experiment at each fraction, the least labels first."""
    found = []
    for fraction, rows in tables.by_fraction.dropna(subset="iou").groupby("fraction"):
        pairs = tables.pairs[tables.pairs["fraction"] == fraction]
        best = rows[~rows["experiment"].isin(pairs["other"])].iloc[0].to_dict()  # equals are in order there
        pairs = pairs[pairs["better"] == best["experiment"]]
        against = pairs.sort_values("gain").to_dict("records")
        found.append(Choice(float(best["labelled_chips"]), float(str(fraction)), best, tuple(against)))
    return found


def answer(tables: Tables, *, labelled_chips: int = LABELLED_CHIPS) -> Answer | None:
    """Which experiment to use with so many labelled chips; None where no fraction is finished.

    It is that of the fraction whose number of chips is nearest, as a ratio.
    """
    found = choices(tables)
    if not found:
        return None
    choice = min(found, key=lambda one: abs(math.log(one.chips / labelled_chips)))
    return Answer(
        comparison=tables.name,
        chips=choice.chips,
        verdict=_verdict(choice),
        evidence=(_score(tables, choice), *_rivals(choice), *_cheapest(tables, choice), _sureness(tables, choice)),
    )


def _verdict(choice: Choice) -> str:
    name, alike = choice.best["experiment"], [str(row["other"]) for row in choice.alike]
    if not choice.against:
        return f"Only {name} was measured with so many labels: there is nothing to choose from."
    if not alike:
        return f"Use {name}: it is better than {_listed([row['other'] for row in choice.against])}."
    return f"{name} has the highest IoU, but it can't be told apart from {_listed(alike)}."


def _score(tables: Tables, choice: Choice) -> str:
    best = choice.best
    weights = tables.cells.loc[tables.cells["experiment"] == best["experiment"], "weights"].iloc[0]
    return f"{best['experiment']} (weights: {weights}) has an IoU of {_estimate(best, 'iou', sign='')}."


def _rivals(choice: Choice) -> list[str]:
    told = []
    for row in choice.against:
        p = "no p value" if pd.isna(row["p_holm"]) else f"p = {row['p_holm']:.3f}"
        seeds = f"ahead in {row['seeds_ahead']:.0f} of {row['seeds']:.0f} seed{'s' * (row['seeds'] != 1)}"
        how = "Better than" if told_apart(row) else "Can't be told apart from"
        told.append(f"{how} {row['other']}: IoU {_estimate(row, 'gain', sign='+')}, {p}, {seeds}.")
    return told


def _cheapest(tables: Tables, choice: Choice) -> list[str]:
    """Among equals the one that trains quickest is worth a word."""
    if not choice.alike:
        return []
    names = [choice.best["experiment"], *(row["other"] for row in choice.alike)]
    cells = tables.cells[(tables.cells["fraction"] == choice.fraction) & tables.cells["experiment"].isin(names)]
    hours = cells.groupby("experiment")["hours"].mean()
    return [f"Of these, {hours.idxmin()} took the least time to train: {duration(float(hours.min()))}."]


def _sureness(tables: Tables, choice: Choice) -> str:
    units, best = int(tables.cells["units"].iloc[0]), choice.best
    rough = " They are few, so every interval is rough." if units < _FEW_UNITS else ""
    pairs = int((tables.pairs["fraction"] == choice.fraction).sum())
    corrected = f" p is corrected for the {pairs} pairs at this number of labels (Holm)." if pairs > 1 else ""
    return (
        f"How sure: the 95 % intervals are over {units} cells of test ground.{rough}{corrected} "
        f"By seed, {best['experiment']} had an IoU from {best['iou_least_seed']:.3f} to {best['iou_most_seed']:.3f} "
        f"({best['seeds']:.0f} seed{'s' * (best['seeds'] != 1)}). "
        "Other ground, sensors and dates were not tested."
    )


def _estimate(row: dict[str, Any], name: str, *, sign: str) -> str:
    value = f"{row[name]:{sign}.3f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{value} (no interval)" if pd.isna(low) else f"{value} [{low:{sign}.3f}, {high:{sign}.3f}]"


def duration(hours: float) -> str:
    """Hours, or minutes where it is less than one."""
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _listed(names: Sequence[object]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last
