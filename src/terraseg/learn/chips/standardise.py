"""What pixels are standardised with: the statistics of the dataset, or those that a backbone was pretrained with."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import ChipDataset
from terraseg.core.bands import UNIT
from terraseg.errors import ConfigError, DatasetError
from terraseg.learn.models.specs import SPECS

DATASET = "dataset"
"""The statistics of train."""

_Floats = npt.NDArray[np.float32]


def standard_of(dataset: ChipDataset, bands: Sequence[str], *, statistics: str) -> tuple[_Floats, _Floats]:
    """Mean and deviation of each band, in DN.

    Args:
        bands: ESA names.
        statistics: ``dataset``, or the name of a backbone whose own are published (`terraseg.learn.models.specs`).

    Raises:
        DatasetError: the dataset lacks a band's, or a band is constant over train.
        ConfigError: nobody knows such statistics, or not those of each band.
    """
    if statistics != DATASET:
        return _published(statistics, bands)
    lost = [name for name in dataset.info.bands if name not in dataset.stats.bands]
    if lost:
        raise DatasetError(
            f"{dataset.root}/stats.json has no statistics of {', '.join(lost)}", fix="run the preparation again"
        )
    held = [dataset.stats.bands[name] for name in bands]
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
    assert spec.bands is not None  # noqa: S101  # as the known have them
    if unknown := [name for name in bands if name not in spec.bands]:
        raise ConfigError(
            f"{backbone} has no statistics of {', '.join(unknown)}",
            expected=f"bands of {', '.join(spec.bands)}",
            fix=f"choose these, or statistics: {DATASET}",
        )
    chosen = [spec.bands.index(name) for name in bands]
    means, stds = np.asarray(spec.means, np.float32)[chosen], np.asarray(spec.stds, np.float32)[chosen]
    return means, stds
