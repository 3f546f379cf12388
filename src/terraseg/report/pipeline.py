"""Overview of the pipeline, for the README."""

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from terraseg.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, new_axes, new_figure

_STEPS = (
    ("acquire", "scenes and footprints", ("Sentinel-2 and OSM", "units, offsets checked", "label extent kept"), BLUE),
    ("prepare", "chips and splits", ("footprints to pixels", "blocks with gaps", "audit that fails on a leak"), ORANGE),
    ("learn", "terratorch fit", ("foundation model or CNN", "best IoU of the class", "calibrated bundle"), GREEN),
    ("map", "whole scenes", ("blended windows", "COG and polygons", "STAC item"), PURPLE),
    ("assess", "metrics one can trust", ("held-out blocks", "95 % intervals", "report.html"), VERMILION),
)  # fmt: skip

_ROUND = "round,pad=0,rounding_size=0.08"


def pipeline_overview() -> Figure:
    """The five steps, with inputs and checks."""
    figure = new_figure(10.2, 2.2)
    axes = new_axes(figure, 1, 1)[0][0]
    axes.set(xlim=(0, len(_STEPS) * 2.1 - 0.1), ylim=(0, 2))
    axes.axis("off")
    for number, (name, what, lines, colour) in enumerate(_STEPS):
        left = number * 2.1
        axes.add_patch(FancyBboxPatch((left + 0.04, 0.06), 1.76, 1.86, _ROUND, fc="white", ec=colour, lw=1.6))
        axes.text(left + 0.92, 1.66, name, ha="center", va="center", fontsize=12, fontweight="bold", color=colour)
        axes.text(left + 0.92, 1.36, what, ha="center", va="center", fontsize=8.5)
        for row, line in enumerate(lines):
            axes.text(left + 0.92, 0.95 - 0.29 * row, line, ha="center", va="center", fontsize=7.5, color=GREY)
        if number:
            arrow = FancyArrowPatch((left - 0.26, 1), (left + 0.02, 1), arrowstyle="-|>", mutation_scale=11, color=GREY)
            axes.add_patch(arrow)
    return figure
