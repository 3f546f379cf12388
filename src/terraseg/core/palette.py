"""Colours of classes: by what their names say, so that water is blue on every map, else from a palette."""

import colorsys
import re
from collections.abc import Sequence

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

_NAMED: tuple[tuple[str, Colour], ...] = (
    (r"background|other|unclassified|no data", (224, 224, 224)),
    (r"wetland|swamp|marsh|mangrove|flooded veg", (122, 135, 198)),
    (r"water|flood|river|lake|sea$", (26, 91, 171)),
    (r"forest|tree|wood", (53, 130, 33)),
    (r"orchard|vineyard|plantation", (150, 120, 180)),
    (r"crop|cultivated|farm|agricult|arable", (255, 219, 92)),
    (r"grass|meadow|pasture", (167, 210, 130)),
    (r"shrub|scrub|bush|range", (239, 207, 195)),
    (r"built|building|urban|artificial|settlement|city", (237, 2, 42)),
    (r"bare|sand|rock|desert|soil", (182, 164, 134)),
    (r"snow|ice$|glacier", (150, 240, 255)),
    (r"cloud", (200, 200, 200)),
    (r"burn|fire", (94, 30, 20)),
)
"""Starts of words in names with their colour, most of them those of ESRI's land cover. The first that fits counts, and
each colour is used once."""

_NOT = re.compile(r"\b(no|not|non|without)\b(?! data)")


def class_colours(names: Sequence[str]) -> list[Colour]:
    """A colour for each class, all different and the same whenever the names are."""
    found: list[Colour | None] = []
    for name in names:
        words = name.lower().replace("_", " ")
        fits = (colour for start, colour in _NAMED if re.search(rf"\b({start})", words))
        found.append(None if _NOT.search(words) else next((colour for colour in fits if colour not in found), None))
    used, step = {colour for colour in found if colour}, 0
    for number, colour in enumerate(found):
        while colour is None or (found[number] is None and colour in used):
            red, green, blue = colorsys.hsv_to_rgb((0.08 + step * 0.618034) % 1, 0.6, 0.6 + 0.15 * (step % 3))
            colour, step = (round(255 * red), round(255 * green), round(255 * blue)), step + 1
        found[number] = colour
        used.add(colour)
    return [colour for colour in found if colour]


def as_hex(colour: Colour) -> str:
    """Such as ``#1a5bab``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
