"""The label-efficiency curve: IoU over the number of labelled chips, and the baseline with all labels.

Validation chips are labelled too: they choose checkpoint, threshold and calibration.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from terraseg.contracts.comparison import Tables
from terraseg.report.style import GREY, house_style, new_axes, new_figure, series
from terraseg.report.which_model import untuned_note


def label_efficiency(comparisons: Sequence[Tables]) -> Figure:
    """One panel per comparison, one line per experiment, with the 95 % interval as a band and seeds as small points."""
    with house_style():
        figure = new_figure(8.4, 0.5 + 4.0 * len(comparisons))
        looks = series([name for tables in comparisons for name in tables.cells["experiment"].unique()])
        for axes, tables in zip(new_axes(figure, len(comparisons), 1), comparisons, strict=True):
            _panel(axes[0], tables, looks)
        figure.suptitle(
            "Line: mean over seeds. Band: 95 % interval. Small points: single seeds. "
            "Dashed: the baseline with all labels",
            fontsize=8, color=GREY,
        )  # fmt: skip
    return figure


def _panel(axes: Axes, tables: Tables, looks: Mapping[str, tuple[str, str]]) -> None:
    for name, rows in tables.by_fraction.groupby("experiment", sort=False):
        rows = rows.sort_values("labelled_chips")
        colour, marker = looks[str(name)]
        axes.plot(
            rows["labelled_chips"], rows["iou"], f"-{marker}", color=colour, lw=1.8, ms=7, mec="white", label=name
        )
        band = rows.dropna(subset=["iou_low", "iou_high"])
        if len(band) == 1:
            axes.vlines(band["labelled_chips"], band["iou_low"], band["iou_high"], color=colour, lw=5, alpha=0.3)
        axes.fill_between(band["labelled_chips"], band["iou_low"], band["iou_high"], color=colour, alpha=0.16, lw=0)
        cells = tables.cells[tables.cells["experiment"] == name]
        axes.plot(cells["labelled_chips"], cells["iou"], ".", color=colour, ms=4, alpha=0.8)
    _full_baseline(axes, tables)
    chips = tables.by_fraction.drop_duplicates("labelled_chips").sort_values("labelled_chips")
    axes.set_xscale("log")
    axes.set_xticks(
        chips["labelled_chips"],
        [f"{train:.0f}\n+ {val:.0f}" for train, val in zip(chips["train_chips"], chips["val_chips"], strict=True)],
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    first = tables.cells.iloc[0]
    axes.set(
        title=f"{tables.name}: IoU of the class {first['class']!r}, {first['split']} split{untuned_note(tables)}",
        xlabel=f"Labelled chips: train + validation (logarithmic). Intervals over {first['interval_over']}",
        ylabel="IoU", ylim=(0, None),
    )  # fmt: skip
    axes.grid(axis="y", color="#E4E4E4", lw=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _full_baseline(axes: Axes, tables: Tables) -> None:
    own = tables.by_fraction[tables.by_fraction["experiment"] == tables.baseline]
    full = tables.cells["fraction"].max()
    for row in own[own["fraction"] == full].to_dict("records"):
        axes.axhline(row["iou"], color=GREY, lw=1.1, ls="--", label=f"{tables.baseline}, all labels")
