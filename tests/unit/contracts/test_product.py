"""Where a product has its files: the polygons are named after the class, and older names are read on."""

import json
from pathlib import Path

import pytest

from terraseg.contracts.product import Product, find_products, threshold_level
from terraseg.errors import SceneError


def finished(root: Path, class_name: str) -> Product:
    root.mkdir(exist_ok=True)
    product = Product(root, class_name)
    product.polygons.touch()
    product.geopackage.touch()
    product.item.write_text(json.dumps({"properties": {"terraseg:class": class_name}}))
    return product


@pytest.mark.parametrize(
    ("class_name", "stem"),
    [("building", "building"), ("urban area/roofs", "urban_area_roofs"), ("../häuser", "_häuser")],
)
def test_the_polygons_are_named_after_the_class(tmp_path: Path, class_name: str, stem: str) -> None:
    product = finished(tmp_path, class_name)
    assert find_products(tmp_path) == [product]
    (found,) = find_products(tmp_path)
    assert found.polygons == product.polygons == tmp_path / f"{stem}.parquet"
    assert found.geopackage == product.geopackage == tmp_path / f"{stem}.gpkg"


def test_polygons_of_older_products_are_found(tmp_path: Path) -> None:
    finished(tmp_path, "buildings")
    Product(tmp_path).item.write_text(json.dumps({"properties": {"terraseg:class": "flood"}}))
    for product in (Product(tmp_path), Product(tmp_path, "flood")):
        assert product.polygons == tmp_path / "buildings.parquet"
        assert product.geopackage == tmp_path / "buildings.gpkg"
    product.reopen()
    assert not list(tmp_path.iterdir())
    assert product.polygons == tmp_path / "flood.parquet"


def test_polygons_of_another_class_do_not_stay(tmp_path: Path) -> None:
    finished(tmp_path, "flood")
    Product(tmp_path, "road").reopen()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_an_unfinished_or_damaged_product_is_named(tmp_path: Path, text: str | None) -> None:
    product = Product(tmp_path)
    if text is not None:
        product.item.write_text(text)
    with pytest.raises(SceneError, match=r"item\.json"):
        product.properties()


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 0), (0.5, 125), (0.501, 126), (0.1 * 3, 75), (1.0, 250)])
def test_the_level_of_a_threshold_is_the_lowest_dn_that_reaches_it(threshold: float, expected: int) -> None:
    assert threshold_level(threshold) == expected
