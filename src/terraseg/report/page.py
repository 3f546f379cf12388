"""Self-contained pages: templates with data URIs, and one script that the page allows by its hash."""

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from terraseg.assess.ground.predictions import Prediction
from terraseg.contracts.dataset import ChipDataset
from terraseg.contracts.scene import Scene
from terraseg.report.comparison_tables import chips
from terraseg.report.layered_map import LABEL, layered_map
from terraseg.report.style import CLASS, FALSE_ALARM, HIT, MISS, STRIPE
from terraseg.report.which_model import duration, is_significant

_COLOURS = {
    "label": LABEL, "prediction": CLASS, "hit": HIT, "miss": MISS, "false_alarm": FALSE_ALARM, "unknown": STRIPE,
}  # fmt: skip
"""Colours of the map and its legend."""


@dataclass(frozen=True)
class EmbeddedMap:
    """A page in a frame of a notebook; it needs no network and no widget server.

    Attributes:
        page: HTML.
        height: of the frame, in pixels.
    """

    page: str
    height: int

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" title="Map" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )


def pannable_map(
    *, scene: Scene, dataset: ChipDataset, predictions: Sequence[Prediction] = (), height: int = 760
) -> EmbeddedMap:
    """The map of the report for a notebook: zoom, drag, switch layers, swipe.

    Args:
        scene: the scene to show.
        dataset: its labels and splits.
        predictions: of this scene, the first is shown first; by default only imagery and label.
        height: of the frame, in pixels.

    Raises:
        SceneError: a prediction has another grid or no threshold.
    """
    layered = layered_map(scene=scene, dataset=dataset, predictions=predictions)
    return EmbeddedMap(render("map_page.html.j2", layered=layered), height)


def render(template: str, **values: Any) -> str:  # noqa: ANN401 - whatever the template shows
    """Fill a template of ``templates/``; a missing value is an error, and text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("terraseg.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["duration"] = duration
    environment.filters["chips"] = chips
    environment.tests["known"] = pd.notna
    environment.tests["significant"] = is_significant
    script = resources.files("terraseg.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        colours=_COLOURS,
        script=markupsafe.Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
