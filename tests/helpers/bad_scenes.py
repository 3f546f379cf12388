"""Scenes that are changed into what they should not be, and the one line that a command says of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert "Traceback" not in said.err
    assert lines[-1].startswith("terraseg: ")
    assert sum(line.startswith("terraseg: ") for line in lines) == 1
    return lines[-1]


def rewrite(path: Path, **changes: Any) -> None:
    """Write a scene again as no scene should be."""
    with rasterio.open(path) as source:
        pixels, profile, tags, names = source.read(), source.profile, source.tags(), source.descriptions
    pixels = changes.pop("pixels", lambda values: values)(pixels)
    names, tags = changes.pop("names", names), {"UNIT": changes.pop("unit", tags["UNIT"])}
    kept = {key: profile[key] for key in ("width", "height", "crs", "transform", "nodata", "dtype")} | changes
    with rasterio.open(path, "w", driver="GTiff", count=len(pixels), **kept) as target:
        target.write(pixels.astype(kept["dtype"]))
        target.update_tags(**tags)
        for index, name in enumerate(names[: len(pixels)], start=1):
            if name:
                target.set_band_description(index, name)


def change_item(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    item = json.loads(path.with_suffix(".json").read_text())
    change(item)
    path.with_suffix(".json").write_text(json.dumps(item))
