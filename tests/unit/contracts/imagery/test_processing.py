"""How pixels came to be: read from items of today and of before, and compared."""

import pytest

from terraseg.contracts.imagery.processing import (
    Processing,
    check_same_processing,
    processing_in_common,
    processing_level,
    processing_of,
)
from terraseg.errors import SceneError

_ALL = Processing(resampling="bilinear", level="L2A", offset="removed")


def test_an_item_keeps_the_facts():
    assert processing_of(_ALL.as_properties) == _ALL
    assert Processing().as_properties == {}


@pytest.mark.parametrize(
    ("properties", "facts"),
    [
        ({}, Processing()),
        ({"terraseg:resampling_rule": "cubic (SCL: nearest)"}, Processing(resampling="cubic")),
        ({"terraseg:resampling_rule": "nearest, from EPSG:4326"}, Processing()),
        ({"terraseg:resampling_rule": "none"}, Processing()),
        ({"terraseg:sources": [{"id": "a", "level": "L1C"}]}, Processing(level="L1C")),
        ({"terraseg:sources": [], "terraseg:level": "L3"}, Processing()),
        ({"terraseg:offset_state": "present"}, Processing(offset="present")),
    ],
)
def test_items_from_before_and_of_others_say_what_they_know(properties, facts):
    assert processing_of(properties) == facts


def test_facts_in_common_are_those_that_all_share():
    other = Processing(resampling="nearest", level="L2A")
    assert processing_in_common([_ALL, _ALL]) == _ALL
    assert processing_in_common([_ALL, other]) == Processing(level="L2A")
    assert processing_in_common([]) == Processing()


def test_scenes_that_differ_in_a_known_fact_raise_an_error():
    check_same_processing({"a": _ALL, "b": Processing(level="L2A")})
    with pytest.raises(SceneError, match="a has the level L2A, b has L1C"):
        check_same_processing({"a": _ALL, "b": Processing(level="L1C")})


@pytest.mark.parametrize(
    ("item_id", "properties", "collection", "level"),
    [
        ("S2A_33TWL_20230815_0_L2A", {}, None, "L2A"),
        ("S2A_33TWL_20230815_0", {}, None, None),
        ("S2A_33TWL_20230815_0", {}, "sentinel-2-l1c", "L1C"),
        ("S2A_33TWL_20230815_0", {"s2:product_type": "S2MSI1C"}, "sentinel-2", "L1C"),
        ("a", {"s2:product_uri": "S2A_MSIL2A_20230815T095031_N0509_R079_T33TWL_20230815T155057.SAFE"}, None, "L2A"),
        ("a", {"processing:level": "L1C"}, "sentinel-2-l2a", "L1C"),
        ("a", {"processing:level": "L2"}, "sentinel-2-l2a", "L2A"),
    ],
)
def test_the_level_of_an_item(item_id, properties, collection, level):
    assert processing_level(item_id, properties, collection=collection) == level
