"""Maps of single images of any size, with or without a CRS."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from scipy.special import expit

from terraseg.contracts.bundle import Bundle
from terraseg.contracts.scene import NODATA
from terraseg.core.bands import band_indices
from terraseg.core.files import atomic_path
from terraseg.core.normalise import by_date, never_observed
from terraseg.core.windows import WindowAxis, default_overlap
from terraseg.mapping.runtimes.pytorch import TorchPredictor
from terraseg.prepare.import_files import Header
from terraseg.serve.jobs.folder import read_pixels
from terraseg.serve.schema import Facts

MAP_NODATA = 255
"""Value of a map where a band of the model has no observation."""


class Mapper(TorchPredictor):
    """A model that maps images.

    Args:
        bundle: of the model.
        threshold: of two classes: lowest probability of the positive class; by default the bundle's.
        batch_size: windows in one forward pass.

    Raises:
        CheckpointError: the bundle's weights can't be loaded.
    """

    def __init__(self, bundle: Bundle, *, threshold: float | None = None, batch_size: int = 8) -> None:
        super().__init__(bundle)
        self.info, self._batch = bundle.info, batch_size
        self._threshold = bundle.info.threshold if threshold is None else threshold

    def classes(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Class ids (rows, columns) of DN (dates x bands of the model, rows, columns).

        They are `MAP_NODATA` where no date is observed.

        Of two classes, the positive one is where its calibrated probability reaches the threshold, as in
        `terraseg predict`; of several, each pixel gets the most probable class. Windows are blended as there.
        """
        side = self.info.tile_size
        rows, columns = (WindowAxis(size, side, default_overlap(side)) for size in pixels.shape[1:])
        beyond = ((0, 0), (0, rows.padded - rows.size), (0, columns.padded - columns.size))
        filled = np.pad(pixels, beyond, constant_values=NODATA)
        count = 1 if len(self.info.classes) == 2 else len(self.info.classes)
        blended = np.zeros((count, rows.padded, columns.padded), np.float32)
        places = [(row, column) for row in range(len(rows.offsets)) for column in range(len(columns.offsets))]
        for start in range(0, len(places), self._batch):
            batch = places[start : start + self._batch]
            cuts = [
                np.s_[:, rows.offsets[r] : rows.offsets[r] + side, columns.offsets[c] : columns.offsets[c] + side]
                for r, c in batch
            ]
            scores = self._probabilities(np.stack([filled[cut] for cut in cuts]))
            for (r, c), cut, score in zip(batch, cuts, scores, strict=True):
                blended[cut] += score * rows.weights[r][:, None] * columns.weights[c]
        shown = blended[:, : rows.size, : columns.size]
        if count == 1:
            positive = self.info.positive_class
            ids = np.where(shown[0] >= self._threshold, positive, 1 - positive).astype(np.uint8)
        else:
            ids = shown.argmax(axis=0).astype(np.uint8)
        frames = len(pixels) // len(self.bands)
        ids[never_observed(pixels, frames=frames, nodata=NODATA)] = MAP_NODATA
        return ids

    def _probabilities(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(batch, classes, rows, columns); of two classes (batch, 1, rows, columns), the positive one's."""
        if len(self.info.classes) == 2:
            return np.asarray(expit(self(pixels)), np.float32)[:, None]
        return self.probabilities(pixels)

    def map(self, image: Path, output: Path, facts: Facts) -> tuple[npt.NDArray[np.uint8], Header]:
        """Map an image to a GeoTIFF of class ids on the same grid, with or without a CRS.

        Raises:
            SceneError: the image can't be read, or lacks a band of the model.
        """
        pixels, header = read_pixels(image, facts)
        chosen = band_indices(self.info.bands, header.bands, where=str(image))
        dates = by_date(pixels, frames=facts.num_frames)[:, chosen]
        ids = self.classes(dates.reshape(-1, *pixels.shape[1:]))
        names = {str(number): name for number, name in self.info.classes.items()}
        with warnings.catch_warnings(), atomic_path(output) as temporary:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(
                temporary, "w", driver="GTiff", count=1, height=ids.shape[0], width=ids.shape[1], dtype="uint8",
                nodata=MAP_NODATA, crs=header.crs or None, transform=header.transform, compress="deflate",
            ) as target:  # fmt: skip
                target.write(ids, 1)
                target.update_tags(
                    CLASSES=json.dumps(names), ATTRIBUTION=self.info.attribution, MODEL_LICENCE=self.info.licence
                )
        return ids, header
