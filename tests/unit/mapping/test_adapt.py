"""A model from elsewhere on labelled ground: the sum of its probabilities becomes the true area there."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from safetensors.numpy import save_file

import terraseg
from helpers.convolution import ConvBundle
from helpers.factories import make_info
from terraseg.contracts.footprints import find_footprints, write_footprints
from terraseg.contracts.product import find_products
from terraseg.errors import LabelError, TerrasegError
from terraseg.prepare.config import PrepareConfig
from terraseg.prepare.labels.rules import LabelRule
from terraseg.sample.city.make import make_city_scene

CONFIG = PrepareConfig(label_rule=LabelRule(kind="coverage", threshold=0.5))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    scenes, labels = make_city_scene(tmp_path_factory.mktemp("city"), size=200, seed=3)
    return Path(scenes), Path(labels)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One convolution, on the city's own statistics."""
    root = tmp_path / "model" / "bundle"
    root.mkdir(parents=True)
    save_file({"none": np.zeros(1, np.float32)}, root / "weights.safetensors")
    (root / "config.yaml").write_text("{}", encoding="utf-8")
    facts = {"intercept": 3.0, "target": "share", "means": (1200.0,) * 6, "stds": (400.0,) * 6}
    monkeypatch.setattr(
        "terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(Path(root), make_info(**facts))
    )
    return root


def _western(labels: Path, folder: Path, *, share: float) -> Path:
    """The footprints in the western part, with that part as their extent."""
    table, (source,) = find_footprints(labels)
    west, south, east, north = shapely.from_wkt(source.extent).bounds
    part = shapely.box(west, south, west + share * (east - west), north)
    inside = table[table.to_crs(4326).intersects(part)]
    path = folder / "buildings.parquet"
    path.parent.mkdir(parents=True)
    write_footprints(path, gpd.GeoDataFrame(inside), source.model_copy(update={"extent": part.wkt}))
    return path


def test_the_map_of_the_labelled_ground_adds_up_to_the_true_area(city, bundle, tmp_path, monkeypatch):
    scenes, labels = city
    west = _western(labels, tmp_path / "labels", share=0.5)
    found = terraseg.adapt(
        bundle=bundle, input=scenes, labels=west, output=tmp_path / "there" / "bundle", config=CONFIG, device="cpu"
    )
    assert found.pixels == pytest.approx(200 * 200 / 2, rel=0.05)
    assert found.before > 2 * found.share
    assert found.after == pytest.approx(found.share, rel=0.02)
    info = found.bundle.info
    assert (info.experiment, info.weights_hash != "") == ("there", True)
    assert find_footprints(labels)[1][0].attribution in info.attribution

    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda _: found.bundle)
    terraseg.predict(bundle=found.bundle.root, input=scenes, output=tmp_path / "maps", device="cpu")
    (product,) = find_products(tmp_path / "maps")
    with rasterio.open(product.probability) as source:
        shown = source.read(1)[:, :95] / 250
    assert shown.mean() == pytest.approx(found.share, rel=0.1)


def test_ground_without_a_building_raises_an_error_and_writes_nothing(city, bundle, tmp_path):
    scenes, labels = city
    table, (source,) = find_footprints(labels)
    one = gpd.GeoDataFrame(table.head(1))
    beside = shapely.box(*one.to_crs(4326).total_bounds).buffer(1e-6)  # smaller than a pixel: no pixel is known
    path = tmp_path / "labels" / "buildings.parquet"
    path.parent.mkdir()
    write_footprints(path, one, source.model_copy(update={"extent": beside.wkt}))
    with pytest.raises(LabelError, match="px of building"):
        terraseg.adapt(
            bundle=bundle, input=scenes, labels=path, output=tmp_path / "there" / "bundle", config=CONFIG, device="cpu"
        )
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("output", ["mine", "model/bundle"])
def test_nothing_but_another_adapted_model_is_replaced(city, bundle, tmp_path, output):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (bundle / "bundle.json").write_text("{}")
    before = {path: path.read_bytes() for path in (tmp_path).rglob("*.*") if path.is_file()}
    with pytest.raises(TerrasegError):
        terraseg.adapt(
            bundle=bundle, input=city[0], labels=city[1], output=tmp_path / output, config=CONFIG, device="cpu"
        )
    assert {path: path.read_bytes() for path in (tmp_path).rglob("*.*") if path.is_file()} == before
