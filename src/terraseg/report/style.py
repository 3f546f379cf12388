"""Style of all figures: colours for colour-blind readers, one font, and the attribution."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from terraseg.core.files import atomic_path

# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

CLASS = VERMILION
"""The class on label and prediction maps."""

HIT, MISS, FALSE_ALARM = BLUE, ORANGE, PURPLE
"""Error maps."""

SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": PURPLE}
"""Maps of the splits."""

STRIPE = "#BDBDBD"
"""Stripes over unknown pixels."""

GREY = "#6E6E6E"
"""Lines and notes that are not data, and the index baseline."""

SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Experiments in alphabetical order; markers differ too."""

MARKERS = ("o", "s", "^", "D", "v", "P")

DPI = 150

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
    "svg.hashsalt": "terraseg",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Use the style of terraseg inside this block only."""
    with mpl.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure without a window; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Figure, rows: int, columns: int) -> list[list[Axes]]:
    """A grid of axes."""
    return [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def save(figure: Figure, path: Path, *, attribution: str) -> list[Path]:
    """Write ``<path>.png`` and ``<path>.svg``; the same figure gives the same bytes.

    Args:
        figure: to write.
        path: without suffix.
        attribution: printed at the lower left.
    """
    figure.supxlabel(attribution, x=0.005, ha="left", fontsize=6.5, color=GREY)
    written = []
    for suffix in (".png", ".svg"):
        target = path.with_name(path.name + suffix)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=DPI, metadata={"Date": None} if suffix == ".svg" else {"Software": None})
        written.append(target)
    return written


def series(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by name, the same on every chart."""
    ordered, count = sorted(set(names)), len(SERIES)
    # After six names, the colours repeat with other markers.
    return {name: (SERIES[i % count], MARKERS[(i + i // count) % count]) for i, name in enumerate(ordered)}
