"""Standardised pixels: with the statistics of the dataset, or with those that a backbone was pretrained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import ChipDataset, Stats
from terraseg.core.bands import UNIT
from terraseg.core.normalise import by_date, model_input
from terraseg.errors import ConfigError, DatasetError
from terraseg.learn.models.specs import SPECS

DATASET = "dataset"
"""The statistics of train, or of the train chips of a fold."""

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Standardiser:
    """Raw pixels to the model's input.

    Attributes:
        bands: ESA names, in the model's order.
        available: the dataset's bands.
        means, stds: (bands,), in DN.
        nodata: value of pixels without observation.
        frames: dates of one place.
    """

    bands: tuple[str, ...]
    available: tuple[str, ...]
    means: _Floats
    stds: _Floats
    nodata: float
    frames: int

    @property
    def settings(self) -> dict[str, object]:
        """What the result depends on, in plain values."""
        return {
            "bands": self.bands, "means": self.means.tolist(), "stds": self.stds.tolist(), "nodata": self.nodata,
        }  # fmt: skip

    def __call__(self, pixels: npt.NDArray[Any], *, observed: bool = False, out: _Floats | None = None) -> _Floats:
        """Raw DN (..., the dataset's layers, rows, columns) to normalised float32 in the model's band order.

        Args:
            observed: all pixels are known to have an observation.
            out: where to write.

        Returns:
            (..., bands, rows, columns), of several dates (..., bands, frames, rows, columns).
        """
        if self.bands != self.available:
            indices = [self.available.index(name) for name in self.bands]
            chosen = by_date(pixels, frames=self.frames)[..., indices, :, :]
            pixels = chosen.reshape(*pixels.shape[:-3], self.frames * len(indices), *pixels.shape[-2:])
        nodata = None if observed else self.nodata
        return model_input(pixels, frames=self.frames, means=self.means, stds=self.stds, nodata=nodata, out=out)


def standard_of(
    dataset: ChipDataset, bands: Sequence[str], *, statistics: str, stats: Stats | None = None
) -> tuple[_Floats, _Floats]:
    """Mean and standard deviation of each band, in DN.

    Args:
        bands: ESA names.
        statistics: ``dataset``, or a backbone with published statistics (`terraseg.learn.models.specs`).
        stats: those that ``dataset`` stands for; by default of the prepared train split.

    Raises:
        DatasetError: the dataset has no statistics of a band, or a band is constant over train.
        ConfigError: the backbone has no published statistics, or none of one of the bands.
    """
    if statistics != DATASET:
        return _published(statistics, bands)
    stats = stats or dataset.stats
    lost = [name for name in dataset.info.bands if name not in stats.bands]
    if lost:
        raise DatasetError(
            f"{dataset.root}/stats.json has no statistics of {', '.join(lost)}", fix="run the preparation again"
        )
    held = [stats.bands[name] for name in bands]
    means, stds = (np.array([getattr(band, key) for band in held], dtype=np.float32) for key in ("mean", "std"))
    if not (stds > 0).all():
        flat = [name for name, std in zip(bands, stds, strict=True) if std <= 0]
        raise DatasetError(f"band {', '.join(flat)} is constant over train", fix="leave it out of the bands")
    return means, stds


def _published(backbone: str, bands: Sequence[str]) -> tuple[_Floats, _Floats]:
    known = {
        name: spec for name, spec in SPECS.items() if spec.means and spec.stds and spec.bands and spec.unit == UNIT
    }
    spec = known.get(backbone)
    if spec is None:
        raise ConfigError(f"statistics is {backbone!r}", expected=f"{DATASET}, or one of {', '.join(known)}")
    assert spec.bands is not None  # noqa: S101  # `known` holds no others
    if unknown := [name for name in bands if name not in spec.bands]:
        raise ConfigError(
            f"{backbone} has no statistics of {', '.join(unknown)}",
            expected=f"bands of {', '.join(spec.bands)}",
            fix=f"choose these, or statistics: {DATASET}",
        )
    chosen = [spec.bands.index(name) for name in bands]
    means, stds = np.asarray(spec.means, np.float32)[chosen], np.asarray(spec.stds, np.float32)[chosen]
    return means, stds
