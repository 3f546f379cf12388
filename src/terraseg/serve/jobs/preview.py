"""Small pictures of an image and its map, for the web page."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from terraseg.core.normalise import by_date
from terraseg.serve.jobs.folder import read_pixels
from terraseg.serve.jobs.maps import MAP_NODATA
from terraseg.serve.schema import Facts

MOST = 24
"""Images of an inference that get pictures."""

_SIDE = 512

_COLOURS = ((0, 0, 0, 0), (230, 60, 60, 255), (250, 190, 40, 255), (60, 130, 250, 255), (60, 190, 90, 255),
            (190, 90, 220, 255), (60, 200, 210, 255), (240, 140, 60, 255))  # fmt: skip
"""Of the classes in turn; class 0 and pixels without an observation are transparent."""


def write_previews(image: Path, ids: npt.NDArray[np.uint8], folder: Path, *, number: int, facts: Facts) -> None:
    """Write ``<number>-image.png`` (the first date, in true colour if it has these bands) and ``<number>-map.png``.

    Args:
        image: the image.
        ids: its map.
        folder: for the pictures.
        number: of the image.
        facts: of the image.
    """
    layers, header = read_pixels(image, facts)
    pixels = by_date(layers, frames=facts.num_frames)[0]
    step = max(1, max(ids.shape) // _SIDE)
    chosen = [header.bands.index(name) for name in ("B04", "B03", "B02") if name in header.bands] or [0]
    values = pixels[(chosen * 3)[:3], ::step, ::step].astype(np.float32)
    seen = values[:, (values > 0).all(axis=0)]
    low, high = np.percentile(seen, (2, 98)) if seen.size else (0, 1)
    picture = np.clip((values - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)
    colours = np.zeros((MAP_NODATA + 1, 4), np.uint8)
    for number_of in range(1, MAP_NODATA):
        colours[number_of] = _COLOURS[1 + (number_of - 1) % (len(_COLOURS) - 1)]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.moveaxis(picture, 0, -1)).save(folder / f"{number}-image.png")
    Image.fromarray(colours[ids[::step, ::step]]).save(folder / f"{number}-map.png")
