"""Charts of results: intervals, precision and recall, reliability, thresholds, recall by size, training."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from terraseg.assess.index_baseline import EXPERIMENT as BASELINE
from terraseg.assess.metrics.object_match import SIZES
from terraseg.assess.metrics.objects import RECALL_BY_SIZE
from terraseg.assess.metrics.pixels import METRICS, confusion, confusions, f1, precision, recall
from terraseg.contracts.product import threshold_level
from terraseg.contracts.result import Metrics
from terraseg.report.style import GREY, new_axes, new_figure, series
from terraseg.report.tables import by_iou


def interval_chart(results: Sequence[Metrics]) -> Figure:
    """IoU and F1 with their intervals, one row per result, highest IoU on top."""
    ordered = by_iou(results)[::-1]
    looks = _looks(results)
    figure = new_figure(8.6, 1.7 + 0.55 * len(ordered))
    for axes, name in zip(new_axes(figure, 1, 2)[0], ("iou", "f1"), strict=True):
        for row, result in enumerate(ordered):
            estimate = result.figures[name]
            if estimate.value is None:
                continue
            colour, marker = looks[result.experiment]
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [row, row], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot(estimate.value, row, marker, color=colour, ms=7, mec="white", mew=0.8)
            _note(axes, f"{estimate.value:.2f}", (estimate.value, row), (0, 7), ha="center", size=8)
        axes.set_title(f"{METRICS[name].heading} of the class {ordered[0].class_name!r}")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.6, len(ordered) - 0.3)
        axes.set_yticks(range(len(ordered)), [f"{r.experiment}\n{_short(r.weights)}" for r in ordered], fontsize=8)
        axes.tick_params(length=0)
        axes.grid(axis="x", color="#E4E4E4", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
    figure.axes[1].set_yticklabels([])
    units = " / ".join(sorted({f"{r.over}, {r.split} split" for r in results}))
    figure.suptitle(f"Point: estimate. Line: 95 % interval over {units}", fontsize=8, color=GREY)
    return figure


def class_chart(results: Sequence[Metrics]) -> Figure:
    """IoU of each class with its interval, for each result, and the confusion matrix of the one with the best mean.

    Args:
        results: of several classes, at least one.
    """
    best = max(results, key=lambda result: result.figures["miou"].value or 0.0)
    assert best.classes  # noqa: S101  # as documented
    names, looks = [one.name for one in best.classes.classes], _looks(results)
    side = 1.6 + 0.42 * len(names)
    figure = new_figure(5.2 + side, max(side, 2.6))
    axes, matrix = new_axes(figure, 1, 2)[0]
    ordered = sorted(results, key=lambda result: result.experiment)
    for number, result in enumerate(ordered):
        colour, marker = looks[result.experiment]
        shift = (number - (len(ordered) - 1) / 2) * 0.7 / len(ordered)
        for row, one in enumerate(result.classes.classes if result.classes else ()):
            estimate = one.figures["iou"]
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [row + shift] * 2, color=colour, lw=2, solid_capstyle="butt")
            if estimate.value is not None:
                label = result.experiment if row == 0 else None
                axes.plot(estimate.value, row + shift, marker, color=colour, ms=6, mec="white", label=label)
    axes.set(title="IoU by class", xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(axis="x", color="#E4E4E4", lw=0.7)
    axes.legend(loc="lower right", fontsize=7)
    counts = np.array(best.classes.confusion, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.6 else "black"
            _note(matrix, f"{100 * share:.0f}", (column, row), (0, -2), color=colour, ha="center")
    matrix.set_yticks(range(len(names)), names, fontsize=7)
    matrix.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
    matrix.set(title=f"{best.experiment}: % of each true class", xlabel="Mapped as", ylabel="True class")
    units = " / ".join(sorted({f"{result.over}, {result.split} split" for result in results}))
    figure.suptitle(f"Point: estimate. Line: 95 % interval over {units}", fontsize=8, color=GREY)
    return figure


def curve_chart(results: Sequence[Metrics]) -> Figure:
    """Precision and recall at all thresholds, with the one in use marked, and the reliability of probabilities."""
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
            sure = [(bin_.probability, bin_.low, bin_.high) for bin_ in result.reliability if bin_.low is not None]
            calibration.vlines(*np.array(sure, dtype=float).reshape(-1, 3).T, color=colour, lw=1, alpha=0.6)
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
    """F1 at all probability thresholds, with the one in use marked."""
    looks = _looks(results)
    figure = new_figure(6.0, 3.6)
    axes = new_axes(figure, 1, 1)[0][0]
    for result in sorted(results, key=lambda result: result.experiment):
        if result.threshold is None:
            continue
        colour, marker = looks[result.experiment]
        histogram = np.array([result.negatives, result.positives])
        axes.plot(np.arange(251) / 250, f1(confusions(histogram)), color=colour, lw=1.6, label=result.experiment)
        score = float(f1(confusion(histogram, threshold_level(result.threshold))))
        axes.plot(result.threshold, score, marker, color=colour, ms=7, mec="white", mew=0.8)
    axes.set(title="F1 by threshold", xlabel="Probability threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1))
    axes.grid(color="#E4E4E4", lw=0.7)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.suptitle("Marker: the threshold in use", fontsize=8, color=GREY)
    return figure


def has_sizes(result: Metrics) -> bool:
    """Whether a result has recall by footprint size."""
    return RECALL_BY_SIZE[0] in result.figures


def size_chart(results: Sequence[Metrics], *, gsd: float) -> Figure:
    """Recall by footprint size with intervals; sizes are in m² and in pixels.

    Args:
        results: at least one with `has_sizes`; the others are left out.
        gsd: size of a pixel, in metres.
    """
    scored = sorted(filter(has_sizes, results), key=lambda result: result.experiment)
    looks = _looks(results)
    figure = new_figure(8.4, 4.4)
    axes = new_axes(figure, 1, 1)[0][0]
    for number, result in enumerate(scored):
        colour, marker = looks[result.experiment]
        shift = (number - (len(scored) - 1) / 2) * 0.7 / len(scored)
        drawn = False
        for place, name in enumerate(RECALL_BY_SIZE):
            estimate = result.figures[name]
            if estimate.value is None:
                continue
            at = place + shift
            if estimate.low is not None and estimate.high is not None:
                axes.plot([at, at], [estimate.low, estimate.high], color=colour, lw=2.2, solid_capstyle="butt")
            label = None if drawn else result.experiment
            axes.plot(at, estimate.value, marker, color=colour, ms=7, mec="white", mew=0.8, label=label)
            _note(axes, f"{estimate.value:.2f}", (at, estimate.value), (6, -2))
            drawn = True
    for place, name in enumerate(RECALL_BY_SIZE):
        if all(result.figures[name].value is None for result in scored):
            _note(axes, "no such footprint\nin truth", (place, 0.04), (0, 0), color=GREY, ha="center")
    axes.set(title=f"Recall of {scored[0].class_name} footprints by size", ylabel="Recall at IoU 0.3", ylim=(0, 1.02))
    axes.set_xticks(range(len(SIZES) - 1), [_size_label(low, high, gsd) for low, high in pairwise(SIZES)])
    axes.set_xlim(-0.5, len(SIZES) - 1.5)
    axes.grid(axis="y", color="#E4E4E4", lw=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.suptitle(
        f"Point: estimate. Line: 95 % interval. A pixel is {gsd:g} m wide and covers {gsd**2:g} m²: an object of a\n"
        "few pixels appears as shares of pixels, not as a shape, and no map of such pixels outlines it",
        fontsize=8, color=GREY,
    )  # fmt: skip
    return figure


def _size_label(low: float, high: float, gsd: float) -> str:
    def bounds(unit: float) -> str:
        if not low:
            return f"< {high / unit:g}"
        return f"> {low / unit:g}" if np.isinf(high) else f"{low / unit:g}–{high / unit:g}"

    return f"{bounds(1)} m²\n{bounds(gsd**2)} pixels"


def training_chart(curves: Mapping[str, pd.DataFrame], results: Sequence[Metrics]) -> Figure:
    """Loss and validation IoU over the steps of each training, with the best checkpoint marked.

    Args:
        curves: metrics.csv by experiment.
        results: of all experiments, so that each has the same look as on the other charts.
    """
    looks = _looks(results)
    figure = new_figure(8.6, 3.9)
    loss, score = new_axes(figure, 1, 2)[0]
    for name, curve in sorted(curves.items()):
        colour, marker = looks[name]
        for column, style in (("train/loss", ":"), ("val/loss", "-")):
            known = curve.dropna(subset=column)
            loss.plot(known["step"], known[column], style, color=colour, lw=1.6)
        known = curve.dropna(subset="val/iou")
        score.plot(known["step"], known["val/iou"], color=colour, lw=1.6, label=name)
        if len(known):
            best = known.loc[known["val/iou"].idxmax()]
            score.plot(best["step"], best["val/iou"], marker, color=colour, ms=7, mec="white", mew=0.8)
    loss.set(title="Loss", xlabel="Step", ylabel="Loss", ylim=(0, None))
    score.set(title="Validation IoU of the class", xlabel="Step", ylabel="IoU", ylim=(0, 1))
    for axes in (loss, score):
        axes.grid(color="#E4E4E4", lw=0.7)
    figure.legend(loc="outside lower right", ncols=min(len(curves), 3), fontsize=8)
    figure.suptitle(
        "Dotted: training. Solid: validation. Marker: the best checkpoint, which was tested", fontsize=8, color=GREY
    )
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
