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
