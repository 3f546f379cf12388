"""Charts of results: intervals side by side, precision against recall, reliability."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from terraseg.assess.baseline import EXPERIMENT as BASELINE
from terraseg.assess.evaluate import by_iou
from terraseg.assess.pixels import confusion, confusions, f1, level, precision, recall
from terraseg.assess.record import Metrics
from terraseg.assess.style import GREY, new_axes, new_figure, series


def interval_chart(results: Sequence[Metrics]) -> Figure:
    """IoU and F1 of the class with their intervals, one row a result, best on top."""
    ordered = by_iou(results)[::-1]
    looks = _looks(results)
    figure = new_figure(8.6, 1.7 + 0.55 * len(ordered))
    for axes, name, title in zip(new_axes(figure, 1, 2)[0], ("iou", "f1"), ("IoU", "F1"), strict=True):
        for row, result in enumerate(ordered):
            estimate = result.figures[name]
            if estimate.value is None:
                continue
            colour, marker = looks[result.experiment]
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [row, row], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot(estimate.value, row, marker, color=colour, ms=7, mec="white", mew=0.8)
            _note(axes, f"{estimate.value:.2f}", (estimate.value, row), (0, 7), ha="center", size=8)
        axes.set_title(f"{title} of the class {ordered[0].class_name!r}")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.6, len(ordered) - 0.3)
        axes.set_yticks(range(len(ordered)), [f"{r.experiment}\n{_short(r.weights)}" for r in ordered], fontsize=8)
        axes.tick_params(length=0)
        axes.grid(axis="x", color="#E4E4E4", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
    figure.axes[1].set_yticklabels([])
    units = " / ".join(sorted({f"{len(r.units)} cells of {r.cell} px, {r.split} split" for r in results}))
    figure.suptitle(f"Point: estimate. Line: 95 % interval, spatial block bootstrap ({units})", fontsize=8, color=GREY)
    return figure


def curve_chart(results: Sequence[Metrics]) -> Figure:
    """Precision against recall at all thresholds, with the chosen one marked, and the reliability of probabilities."""
    looks = _looks(results)
    figure = new_figure(8.4, 4.7)
    curve, calibration = new_axes(figure, 1, 2)[0]
    _iso_f1(curve)
    for result in sorted(results, key=lambda result: result.experiment):
        colour, marker = looks[result.experiment]
        style = "--" if result.experiment == BASELINE else "-"
        histogram = np.array([result.negatives, result.positives])
        counts = confusions(histogram)
        label = f"{result.experiment} (AP {result.figures['average_precision'].value:.2f})"
        curve.plot(recall(counts), precision(counts), style, color=colour, lw=1.6, label=label)
        at, precise = result.figures["recall"].value, result.figures["precision"].value
        if at is not None and precise is not None:
            curve.plot(at, precise, marker, color=colour, ms=7, mec="white", mew=0.8)
        if result.reliability:
            calibration.plot(
                [point.probability for point in result.reliability],
                [point.frequency for point in result.reliability],
                f"-{marker}", color=colour, ms=5, lw=1.4,
                label=f"{result.experiment} (ECE {result.figures['ece'].value:.3f})",
            )  # fmt: skip
    prevalence = results[0].pixels.positive / results[0].pixels.valid
    curve.axhline(prevalence, color=GREY, lw=0.8, ls=":")
    _note(curve, f"no skill: {prevalence:.3f}", (0.0, prevalence), (2, 3), color=GREY)
    calibration.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    curve.set_title("Precision and recall", pad=16)  # above the names of the F1 curves
    calibration.set_title("Reliability", pad=16)
    curve.set(xlabel="Recall", ylabel="Precision")
    calibration.set(xlabel="Predicted probability (mean of the bin)", ylabel="Share of the class in truth")
    for axes in (curve, calibration):
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), aspect="equal")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8)
    figure.suptitle(
        f"{results[0].class_name}, {results[0].split} split. Marker on the left: the threshold in use. "
        "Grey curves: equal F1. Dotted: no skill, perfect calibration",
        fontsize=8, color=GREY,
    )  # fmt: skip
    return figure


def threshold_chart(results: Sequence[Metrics]) -> Figure:
    """F1 against the threshold of probability, with the one that validation chose."""
    looks = _looks(results)
    figure = new_figure(6.0, 3.6)
    axes = new_axes(figure, 1, 1)[0][0]
    for result in sorted(results, key=lambda result: result.experiment):
        if result.threshold is None:
            continue
        colour, marker = looks[result.experiment]
        histogram = np.array([result.negatives, result.positives])
        axes.plot(np.arange(251) / 250, f1(confusions(histogram)), color=colour, lw=1.6, label=result.experiment)
        score = float(f1(confusion(histogram, level(result.threshold))))
        axes.plot(result.threshold, score, marker, color=colour, ms=7, mec="white", mew=0.8)
    axes.set(title="F1 by threshold", xlabel="Threshold of probability", ylabel="F1", xlim=(0, 1), ylim=(0, 1))
    axes.grid(color="#E4E4E4", lw=0.7)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.suptitle("Marker: the threshold that validation chose; test had no say in it", fontsize=8, color=GREY)
    return figure


def _looks(results: Sequence[Metrics]) -> dict[str, tuple[str, str]]:
    looks = series([result.experiment for result in results if result.experiment != BASELINE])
    return {**looks, BASELINE: (GREY, "X")}


def _iso_f1(axes: Axes) -> None:
    for score in (0.2, 0.4, 0.6, 0.8):
        across = np.linspace(score / (2 - score), 1, 80)
        up = score * across / (2 * across - score)
        axes.plot(across, up, color="#DDDDDD", lw=0.8, zorder=0)
        _note(axes, f"{score:.1f}", (float(across[0]), 1.0), (0, 4), color=GREY, ha="center")


def _note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float],
    *,
    color: str = "black",
    ha: Literal["left", "center"] = "left",
    size: float = 7,
) -> None:
    axes.annotate(text, at, shift, textcoords="offset points", color=color, ha=ha, fontsize=size)


def _short(text: str, limit: int = 34) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
