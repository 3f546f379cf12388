"""Standardised pixels: with the statistics of the dataset, of each scene, or of a backbone's pretraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import ChipDataset, SceneStats, Stats
from terraseg.contracts.statistics import means_and_stds
from terraseg.core.bands import UNIT
from terraseg.core.normalise import by_date, model_input
from terraseg.errors import ConfigError, DatasetError
from terraseg.learn.models.specs import SPECS, BackboneSpec
from terraseg.learn.models.wheels import WHEELS, WheelWeights

DATASET = "dataset"
"""The statistics of train, or of the train chips of a fold."""

SCENE = "scene"
"""The statistics of the scene that a chip was cut from: another city has another atmosphere and another season."""

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
        scenes: statistics by the name of the scene, which `of_scene` uses instead; None if it doesn't.
    """

    bands: tuple[str, ...]
    available: tuple[str, ...]
    means: _Floats
    stds: _Floats
    nodata: float
    frames: int
    scenes: Mapping[str, SceneStats] | None = None

    @property
    def settings(self) -> dict[str, object]:
        """What the result depends on, in plain values."""
        of_scenes = {name: {key: held.model_dump() for key, held in each.items()}
                     for name, each in (self.scenes or {}).items()}  # fmt: skip
        return {
            "bands": self.bands, "means": self.means.tolist(), "stds": self.stds.tolist(), "nodata": self.nodata,
            **({"scenes": of_scenes} if of_scenes else {}),
        }  # fmt: skip

    def of_scene(self, name: str) -> "Standardiser":
        """The one for chips of a scene: the same for all, unless each scene has its own statistics."""
        return self if self.scenes is None else self.by(self.scenes[name], where=name)

    def by(self, stats: SceneStats, *, where: object) -> "Standardiser":
        """The one with the statistics of a scene.

        Raises:
            SceneError: see `means_and_stds`.
        """
        means, stds = means_and_stds(stats, self.bands, where=where)
        return replace(self, means=means, stds=stds, scenes=None)

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
        statistics: ``dataset``, ``scene``, or a backbone or weights with published statistics
            (`terraseg.learn.models.specs`, `terraseg.learn.models.wheels`).
            With ``scene`` these are those of the dataset, which stay a reference: backbones that want DN get those of
            train, and a scene of another unit differs from them.
        stats: those that ``dataset`` stands for; by default of the prepared train split.

    Raises:
        DatasetError: the dataset has no statistics of a band or a scene, or a band is constant over train.
        ConfigError: the backbone has no published statistics, or none of one of the bands.
        SceneError: a band is constant in a scene.
    """
    if statistics not in (DATASET, SCENE):
        return _published(statistics, bands)
    for name, held in dataset.scene_stats.items() if statistics == SCENE else ():
        means_and_stds(held, bands, where=f"{dataset.root}, scene {name}")
    stats = stats or dataset.stats
    lost = [name for name in dataset.info.bands if name not in stats.bands]
    if lost:
        raise DatasetError(
            f"{dataset.root}/stats.json has no statistics of {', '.join(lost)}", fix="run the preparation again"
        )
    of_train = [stats.bands[name] for name in bands]
    means, stds = (np.array([getattr(band, key) for band in of_train], dtype=np.float32) for key in ("mean", "std"))
    if not (stds > 0).all():
        flat = [name for name, std in zip(bands, stds, strict=True) if std <= 0]
        raise DatasetError(f"band {', '.join(flat)} is constant over train", fix="leave it out of the bands")
    return means, stds


def _published(backbone: str, bands: Sequence[str]) -> tuple[_Floats, _Floats]:
    known: dict[str, BackboneSpec | WheelWeights] = {
        name: spec for name, spec in SPECS.items() if spec.means and spec.stds and spec.bands and spec.unit == UNIT
    }
    known |= {name: wheel for name, wheel in WHEELS.items() if wheel.means}
    spec = known.get(backbone)
    if spec is None:
        raise ConfigError(f"statistics is {backbone!r}", expected=f"{DATASET}, {SCENE}, or one of {', '.join(known)}")
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
