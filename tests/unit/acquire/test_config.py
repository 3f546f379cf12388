"""The sections acquire and labels: unknown keys and contradictions are errors."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from terraseg.acquire.config import AcquireConfig, LabelsConfig
from terraseg.api.config import load_data_config
from terraseg.errors import ConfigError

_PERIODS = {"summer": {"start": "2023-06-01", "end": "2023-08-31"}}


def test_bands_are_kept_as_esa_names() -> None:
    config = AcquireConfig.model_validate({"periods": _PERIODS, "bands": ["blue", "B8A", "SWIR_1"]})
    assert config.bands == ("B02", "B8A", "B11")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_clouds": 10}, "max_clouds"),
        ({"bands": ["B02", "blue"]}, "none twice"),
        ({"bands": ["B10"]}, "L1C only"),
        ({"periods": {}}, "periods"),
        ({"periods": {"summer": {"start": "2023-09-01", "end": "2023-08-31"}}}, "before it starts"),
        ({"periods": {"a b": _PERIODS["summer"]}}, "pattern"),
        ({"mask": {"classes": [12]}}, "SCL has no class"),
        ({"catalogue": {"name": "custom", "url": "http://x"}}, "collection and assets"),
        ({"catalogue": {"offset": 1000}}, "offset"),
        ({"retries": -1}, "retries"),
    ],
)
def test_a_wrong_acquire_section_is_an_error(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AcquireConfig.model_validate({"periods": _PERIODS, **wrong})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"source": {"kind": "shapefile"}}, "kind"),
        ({"source": {"kind": "extract", "path": "a.osm.pbf"}}, "extract_date"),
        ({"tags": {"building": False}}, "building"),
        ({"completeness": {"reference": {"kind": "raster", "path": "a.tif"}}}, "either"),
        (
            {"completeness": {"reference": {"kind": "raster", "path": "a.tif", "above": 0}, "cell": 15}},
            "multiple of 10",
        ),
    ],
)
def test_a_wrong_labels_section_is_an_error(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        LabelsConfig.model_validate(wrong)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"acquire: {periods: {may: {start: 2024-13-01, end: 2024-05-31}}}"])
def test_a_file_that_is_not_yaml_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.yaml .*YAML"):
        load_data_config(tmp_path / "data.yaml")
