"""The offset rule and its check, on real items and on dark pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terraseg.core.offsets import (
    boa_offset,
    check_offsets,
    dark_histogram,
    dark_values,
    processing_baseline,
)
from terraseg.errors import CatalogueError


def _item(folder: Path, start: str) -> dict[str, Any]:
    (path,) = (folder / "stac_items").glob(f"{start}*.json")
    item: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return item


@pytest.mark.parametrize(
    ("start", "baseline", "offset"),
    [("earthsearch_v1_S2A_12RWT", "05.10", 0), ("earthsearch_v1_S2A_33TWL", "05.09", 0), ("pc_S2B", "05.10", -1000)],
)
def test_real_items(shared_data: Path, start: str, baseline: str, offset: int) -> None:
    item = _item(shared_data, start)
    assert processing_baseline(item["id"], item["properties"]) == baseline
    assert boa_offset(item["id"], item["properties"]) == offset


def test_the_baseline_of_cdse_is_found_in_its_name(shared_data: Path) -> None:
    item = _item(shared_data, "cdse")
    assert processing_baseline(item["id"], {}) == "05.11"
    assert boa_offset(item["id"], {}) == -1000


@pytest.mark.parametrize(
    ("properties", "offset"),
    [
        ({"s2:processing_baseline": "02.14"}, 0),
        ({"s2:processing_baseline": "03.01"}, 0),
        ({"s2:processing_baseline": "04.00"}, -1000),
        # Reprocessed scenes of old dates are shifted too: the date does not matter.
        ({"s2:processing_baseline": "05.00", "datetime": "2016-01-01T00:00:00Z"}, -1000),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}, -1000),
        ({"s2:processing_baseline": "02.14", "earthsearch:boa_offset_applied": False}, 0),
        ({"earthsearch:boa_offset_applied": True}, 0),
        ({"processing:version": "05.11"}, -1000),
    ],
)
def test_rule(properties: dict[str, Any], offset: int) -> None:
    assert boa_offset("S2A_31SEA_20160101_0_L2A", properties) == offset


def test_an_item_of_unknown_unit_is_an_error() -> None:
    with pytest.raises(CatalogueError, match="S2A_31SEA_20160101_0_L2A .*processing baseline"):
        boa_offset("S2A_31SEA_20160101_0_L2A", {"s2:processing_baseline": "unknown"})


def _dark(shift: int, *, floors: tuple[int, ...] = (50, 150, 0), seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    rng = np.random.default_rng(seed)
    bands = [rng.gamma(4, 200, 20000).astype(np.int32) + floor + shift for floor in floors]
    values = dark_values(np.stack([dark_histogram(band) for band in bands]))
    assert values is not None
    return values


def test_dark_pixels_agree_only_with_the_right_offset() -> None:
    right, kept, twice = (check_offsets([_dark(shift)], places=[""], corrections=[0])[0] for shift in (0, 1000, -1000))
    assert right == ("dark pixels", None)
    assert "still to add" in str(kept.contradiction)
    assert "added twice" in str(twice.contradiction)


_DESERT = (1250, 1700, 2350)


def test_bright_land_alone_can_not_be_checked() -> None:
    for scenes in (1, 3):
        dark = [_dark(-1000, floors=_DESERT, seed=seed) for seed in range(scenes)]
        checks = check_offsets(dark, places=["31SEA"] * scenes, corrections=[0] * scenes)
        assert checks == [("none", None)] * scenes


def test_scenes_of_another_correction_show_a_wrong_offset_on_bright_land() -> None:
    dark = [_dark(shift, floors=_DESERT, seed=seed) for seed, shift in enumerate((0, 0, -1000))]
    old, other, twice = check_offsets(dark, places=["31SEA"] * 3, corrections=["old", "new", "new"])
    assert (old, other) == (("other scenes", None), ("other scenes", None))
    assert "below" in str(twice.contradiction)
    elsewhere = check_offsets(dark, places=["31SEA", "31SEA", "31SFA"], corrections=["old", "new", "new"])
    assert elsewhere[2] == ("none", None)


def test_other_land_is_not_a_wrong_offset() -> None:
    dark = [_dark(0, floors=_DESERT), _dark(0)]
    desert, sea = check_offsets(dark, places=["31SEA"] * 2, corrections=["old", "new"])
    assert "above those" not in str(desert.contradiction)
    assert sea == ("dark pixels", None)


def test_too_few_clear_pixels_give_no_dark_values() -> None:
    assert dark_values(np.stack([dark_histogram(np.full(999, 2000, np.int32))])) is None


def test_values_beyond_the_histogram_go_to_its_outer_bins() -> None:
    counts = dark_histogram(np.array([-30000, -1000, 4999, 30000], np.int32))
    assert counts[0] == 2
    assert counts[-1] == 2
