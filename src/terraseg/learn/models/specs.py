"""What is known of each backbone: one frozen record a model. A field that nobody published is None."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table
from rich.text import Text

from terraseg.core.bands import BANDS, PRITHVI_BANDS, UNIT
from terraseg.errors import ConfigError

_log = logging.getLogger(__name__)

SATMAE_BANDS = GALILEO_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
SCALEMAE_BANDS = ("B04", "B03", "B02")

GALILEO_MEANS = (1395.3408730676722, 1338.4026921784578, 1343.09883810357, 1543.8607982512297, 2186.2022069512263,
                 2525.0932853316694, 2410.3377187373408, 2750.2854646886753, 2234.911100061487,
                 1474.5311266077113)  # fmt: skip
GALILEO_STDS = (917.7041440370853, 913.2988423581528, 1092.678723527555, 1047.2206083460424, 1048.0101611156767,
                1143.6903026819996, 1098.979177731649, 1204.472755085893, 1145.9774063078878,
                980.2429840007796)  # fmt: skip
"""nasaharvest/galileo, config/normalization.json, entry 13, the Sentinel-2 bands: in DN."""

SATMAE_MEANS = (1184.38, 1120.77, 1136.26, 1263.74, 1645.40, 1846.87, 1762.60, 1972.62, 1732.16, 1247.92)
SATMAE_STDS = (650.28, 712.13, 965.23, 948.98, 1108.07, 1258.36, 1233.15, 1364.39, 1310.37, 1087.60)
"""fMoW-Sentinel, as SatMAE was pretrained: in DN."""

IMAGENET_MEANS, IMAGENET_STDS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue between 0 and 1."""


@dataclass(frozen=True)
class BackboneSpec:
    """A pretrained backbone.

    Attributes:
        name: in `model_args`, as ``backbone``.
        parameters: of the encoder, counted by building it (for the bands below, one frame).
        licence: of the weights, SPDX where it has one.
        weights: where they come from.
        paper: authors, year and arXiv number.
        commercial: whether the licence allows commercial use.
        bands: ESA names of the pretraining, in its order; None: any bands.
        all_bands: the input must be exactly these bands.
        unit: of the pretraining's pixels before normalisation.
        means: of each band in that unit, published with the weights; None: the dataset's own are used.
        stds: like ``means``.
        normalises: the backbone applies ``means`` and ``stds`` itself, instead of the dataset's.
        patch: side of a token in pixels; None for a CNN.
        gsd: of the pretraining's pixels, in metres.
        size: side of the pretraining's images, in pixels.
        frames: dates of one place that the pretraining showed at once; None: the model knows no dates.
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
    size: int | None = None
    frames: int | None = None

    def check_bands(self, given: Sequence[str]) -> None:
        """Check the bands of the data against those of the pretraining.

        A backbone with a fixed set of bands refuses any other set or order. The others take what they are given, but
        the kernels of a band that they never saw start from random weights, which is said in a warning.

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
            _log.warning("%s was not pretrained on %s: their kernels start from random.", self.name, ", ".join(unseen))


def _prithvi(name: str, parameters: int, repository: str, **given: object) -> BackboneSpec:
    second = BackboneSpec(
        name=name,
        parameters=parameters,
        licence="Apache-2.0",
        weights=f"Hugging Face ibm-nasa-geospatial/{repository}",
        paper="Szwarcman et al. 2024, arXiv:2412.02732",
        bands=PRITHVI_BANDS,
        unit=UNIT,
        means=(1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0),
        stds=(2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0),
        patch=16,
        gsd=30.0,
        size=224,
        frames=4,
    )
    return replace(second, **given)  # type: ignore[arg-type]  # each value is checked by the field's own type


def _terramind(size: str, parameters: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"terramind_v1_{size}",
        parameters=parameters,
        licence="Apache-2.0",
        weights=f"Hugging Face ibm-esa-geospatial/TerraMind-1.0-{size}",
        paper="Jakubik et al. 2025, arXiv:2504.11171",
        bands=tuple(band.name for band in BANDS if band.name != "B10"),  # as S2L2A, which all sizes know
        unit=UNIT,
        means=(1390.458, 1503.317, 1718.197, 1853.91, 2199.1, 2779.975, 2987.011, 3083.234, 3132.22, 3162.988,
               2424.884, 1857.648),
        stds=(2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918, 1753.829, 1797.379,
              1434.261, 1334.311),
        patch=16,
        gsd=10.0,
        size=224,
    )  # fmt: skip


def _satmae(size: str, parameters: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"satmae_vit_{size}",
        parameters=parameters,
        licence="CC-BY-NC-4.0",
        commercial=False,
        weights=f"Zenodo record 7338613, pretrain-vit-{size}-e199.pth",
        paper="Cong et al. 2022, arXiv:2207.08051",
        bands=SATMAE_BANDS,
        all_bands=True,
        unit=UNIT,
        means=SATMAE_MEANS,
        stds=SATMAE_STDS,
        normalises=True,
        patch=8,
        gsd=10.0,
        size=96,
    )


def _galileo(size: str, parameters: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"galileo_{size}",
        parameters=parameters,
        licence="MIT",
        weights=f"Hugging Face nasaharvest/galileo, models/{size}/encoder.pt",
        paper="Tseng et al. 2025, arXiv:2502.09356",
        bands=GALILEO_BANDS,
        unit=UNIT,
        means=GALILEO_MEANS,
        stds=GALILEO_STDS,
        normalises=True,
        patch=8,
        gsd=10.0,
    )


def _imagenet(name: str, parameters: int, licence: str, weights: str, paper: str, **given: object) -> BackboneSpec:
    of_photographs = BackboneSpec(
        name=name, parameters=parameters, licence=licence, weights=f"ImageNet-1k, {weights}", paper=paper
    )
    return replace(of_photographs, **given)  # type: ignore[arg-type]


def _dofa(size: str, parameters: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"dofa_{size}_patch16_224",
        parameters=parameters,
        licence="CC-BY-4.0",
        weights="Hugging Face torchgeo/dofa",
        paper="Xiong et al. 2024, arXiv:2403.15356",
        patch=16,
        size=224,
    )


def _by_name(specs: Iterable[BackboneSpec]) -> dict[str, BackboneSpec]:
    return {spec.name: spec for spec in specs}


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
        _terramind("tiny", 5_923_968),
        _terramind("small", 22_464_768),
        _terramind("base", 87_313_920),
        _terramind("large", 305_137_664),
        _satmae("base", 85_551_616),
        _satmae("large", 302_971_904),
        BackboneSpec(
            name="scalemae_vit_large", parameters=303_099_904, licence="CC-BY-NC-4.0", commercial=False,
            weights="torchgeo ScaleMAELarge16_Weights.FMOW_RGB", paper="Reed et al. 2023, arXiv:2212.14532",
            bands=SCALEMAE_BANDS, all_bands=True, unit="0 to 255", means=IMAGENET_MEANS, stds=IMAGENET_STDS,
            normalises=True, patch=16, size=224,
        ),
        _galileo("nano", 884_448),
        _galileo("tiny", 5_475_408),
        _galileo("base", 85_602_624),
        _dofa("base", 111_346_733),
        _dofa("large", 337_151_533),
        _imagenet("timm_resnet50", 23_508_032, "Apache-2.0", "timm resnet50.a1_in1k",
                  "He et al. 2015, arXiv:1512.03385", size=224),
        _imagenet("tu-resnet50.a1_in1k", 23_508_032, "Apache-2.0", "timm resnet50.a1_in1k",  # in SMPModelFactory's name
                  "He et al. 2015, arXiv:1512.03385", size=224),
        _imagenet("timm_tf_efficientnet_lite0", 2_958_848, "Apache-2.0", "timm tf_efficientnet_lite0.in1k",
                  "Tan and Le 2019, arXiv:1905.11946", size=224),
        _imagenet("mit_b2", 24_196_288, "NVIDIA Source Code License", "Hugging Face smp-hub/mit_b2.imagenet",
                  "Xie et al. 2021, arXiv:2105.15203", commercial=False, patch=4),
    ]
)  # fmt: skip
"""The backbones of the field, by their name in `model_args`."""


def models_table() -> Table:
    """A table for the screen: one row a backbone; * marks licences that forbid commercial use."""
    table = Table(caption="* not for commercial use", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Backbone, weights, paper", no_wrap=True)
    table.add_column("Licence, pretraining")
    for spec in SPECS.values():
        known = ((spec.patch, "patch {} px"), (spec.gsd, "{:g} m"), (spec.size, "{} px"), (spec.frames, "{} dates"))
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
