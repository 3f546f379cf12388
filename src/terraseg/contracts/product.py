"""Contract 5: a predicted scene in results/predictions/<scene>. The only place that knows how it looks on disk."""

from dataclasses import dataclass
from pathlib import Path

from terraseg.errors import SceneError

PROBABILITY_SCALE = 1 / 250
"""Probability of one DN of probability.tif: 0 to 250."""

PROBABILITY_NODATA = 255
"""DN of probability.tif without an observation."""

MASK_NODATA = 255
"""DN of mask.tif without an observation."""

LOGITS_SCALE = 1 / 1000
"""Log-odds (natural logarithm) of one DN of logits.tif."""

LOGITS_NODATA = -32768
"""DN of logits.tif without an observation."""

UNCERTAINTY_SCALE = 1 / 250
"""Entropy in bits of one DN of uncertainty.tif: 0 to 250."""

UNCERTAINTY_NODATA = 255
"""DN of uncertainty.tif without an observation."""


@dataclass(frozen=True)
class Product:
    """The files of one predicted scene.

    Attributes:
        root: the folder, named like the scene.
    """

    root: Path

    @property
    def probability(self) -> Path:
        """COG, uint8: 0-250 = probability of the class x 250, 255 = nodata."""
        return self.root / "probability.tif"

    @property
    def mask(self) -> Path:
        """COG, uint8: class ids at the bundle's threshold, 255 = nodata."""
        return self.root / "mask.tif"

    @property
    def logits(self) -> Path:
        """COG, int16, only where it was asked for: log-odds of the probability x 1000, -32768 = nodata.

        Of the blended probability, so that both say the same; beyond +-16.6 single precision can't tell.
        """
        return self.root / "logits.tif"

    @property
    def uncertainty(self) -> Path:
        """COG, uint8, only where it was asked for: entropy of the class against all others x 250, 255 = nodata.

        In bits (Shannon 1948): 1 where the probability is 0.5, 0 where the model is sure.
        """
        return self.root / "uncertainty.tif"

    @property
    def polygons(self) -> Path:
        """GeoParquet: geometry, area_m2, mean_probability."""
        return self.root / "buildings.parquet"

    @property
    def geopackage(self) -> Path:
        """The same polygons for a GIS."""
        return self.root / "buildings.gpkg"

    @property
    def item(self) -> Path:
        """STAC item, written last: a product without it is unfinished."""
        return self.root / "item.json"


def find_products(path: str | Path) -> list[Product]:
    """The finished products at or below a folder, sorted.

    Raises:
        SceneError: there is none.
    """
    path = Path(path)
    products = [Product(item.parent) for item in sorted(path.rglob("item.json"))]
    if not products:
        raise SceneError(f"no finished prediction (item.json) in {path}", fix="run `python src/predict.py` first")
    return products
