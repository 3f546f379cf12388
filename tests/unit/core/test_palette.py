"""Colours follow the names of the classes, also where a name says what a class is not."""

from terraseg.core.palette import class_colours


def test_water_is_blue_beside_what_is_no_water() -> None:
    (blue,) = class_colours(["water"])
    for names in (["no water", "water"], ["not flooded", "flooded"], ["water", "non-water"]):
        assert class_colours(names)[names.index(min(names, key=len))] == blue
        assert len(set(class_colours(names))) == 2
