"""Settings of the preparation: the section ``prepare`` of data_config.yaml, and the options of the import."""

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from terraseg.contracts.imagery.processing import Level
from terraseg.contracts.splits import IGNORE, Split
from terraseg.core.bands import PRITHVI_BANDS, band
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import ConfigError
from terraseg.prepare.labels.rules import LabelRule


class SplitRule(Strict):
    """How the ground is divided into train, val and test.

    Attributes:
        kind: ``blocks``: squares of ``block_chips`` chips, assigned at random, stratified by the density of the class.
            ``columns`` or ``rows``: three strips in the order train, val, test. ``polygons``: areas from a file, such
            as cities, so that no city is in two splits. Ground outside the polygons is not used.
        block_chips: side of a block, in chips.
        gap_m: least distance between pixels of two splits, in metres; at least one chip, which is the default.
        train, val, test: shares of the blocks, or of the extent for strips; they add up to 1.
        seed: for the assignment and the folds.
        folds: number of folds for a cross-validation over the blocks of train and val; kind ``blocks`` only. The
            datamodule's ``fold`` selects one for a training. The test split stays the same.
        path: file of polygons with a CRS (GeoPackage, GeoJSON, GeoParquet), or ``FILE:LAYER``; kind ``polygons`` only.
        column: column of this file with the split, or with the city if ``assign`` is set.
        assign: names in ``column`` for each split, as in ``{train: [Algiers, Oran], val: [Blida], test: [Setif]}``.
    """

    kind: Literal["blocks", "columns", "rows", "polygons"] = "blocks"
    block_chips: int = Field(default=4, ge=1)
    gap_m: float | None = Field(default=None, gt=0)
    train: float = Field(default=0.6, gt=0, lt=1)
    val: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0
    folds: int | None = Field(default=None, ge=2)
    path: str | None = None
    column: str | None = None
    assign: dict[Split, tuple[str, ...]] | None = None

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> "SplitRule":
        given = [key for key in ("path", "column", "assign") if getattr(self, key) is not None]
        if self.kind != "polygons" and given:
            raise ValueError(f"split {self.kind} has no {', '.join(given)}: choose kind polygons, or remove the keys")
        if self.kind == "polygons" and (self.path is None or self.column is None):
            raise ValueError("split polygons needs path and column")
        if self.kind != "blocks" and self.folds is not None:
            raise ValueError(f"split {self.kind} has no folds: choose kind blocks, or remove folds")
        names = [name for names in (self.assign or {}).values() for name in names]
        if len(set(names)) != len(names):
            raise ValueError("split assign has the same name in two splits")
        return self

    @model_validator(mode="after")
    def _shares_add_up(self) -> "SplitRule":
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"split shares add up to {self.train + self.val + self.test:g}, expected 1")
        return self


class Completeness(Strict):
    """Where the labels are known to be incomplete.

    Attributes:
        path: GeoParquet of cells with the column ``covered_share`` (written by `data labels`).
        least_share: pixels are ignored in cells where labels cover less than this share of the built-up area.
    """

    path: str
    least_share: float = Field(default=0.5, gt=0, le=1)


class PrepareConfig(Strict):
    """The section ``prepare``.

    Attributes:
        bands: bands of the chips in this order; names in any dialect.
        frames: dates per chip, for models of several dates. Scenes on one pixel grid are the frames of a place, the
            first date first; each place needs exactly this many. With 1, each scene gives its own chips.
        gsd: pixel size of chips, masks and maps in metres: by default that of the scenes, or a half, a third ... of it,
            such as 2.5 for scenes of 10 m. Images are interpolated, and footprints are rasterised on the finer grid.
        tile_size: side of a chip, in pixels.
        train_stride: step between train chips in pixels, by default ``tile_size``. A smaller step makes train chips
            overlap. Chips of val and test overlap only if the side of a block is not a multiple of the chip's.
        label_rule: see `LabelRule`.
        split: see `SplitRule`.
        label_shift: ``measure``: report the offset between footprints and imagery. ``apply``: also move the footprints
            back, or raise an error if the offset is not clear. By default it is not measured.
        completeness: see `Completeness`; by default labels count as complete within their extent.
    """

    bands: tuple[str, ...] = PRITHVI_BANDS
    frames: int = Field(default=1, ge=1)
    gsd: float | None = Field(default=None, gt=0)
    tile_size: int = Field(default=224, ge=8)
    train_stride: int | None = Field(default=None, ge=1)
    label_rule: LabelRule = LabelRule()
    split: SplitRule = SplitRule()
    label_shift: Literal["measure", "apply"] | None = None
    completeness: Completeness | None = None

    def label_rule_in_words(self) -> str:
        """The label rule, and whether footprints are moved."""
        moved = ", footprints moved onto the imagery" if self.label_shift == "apply" else ""
        return self.label_rule.in_words() + moved

    @field_validator("bands")
    @classmethod
    def _bands_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(band(name).name for name in value)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"bands {value} are empty or contain a band twice")
        return names

    @model_validator(mode="after")
    def _stride_fits(self) -> "PrepareConfig":
        if self.train_stride is not None and self.train_stride > self.tile_size:
            raise ValueError(f"train_stride {self.train_stride} leaves gaps between chips of {self.tile_size} px")
        return self


class FolderOptions(Strict):
    """How to read and split the images and masks of an import.

    Attributes:
        image_suffix, mask_suffix: end of the file names to remove, so that an image and its mask have the same name.
        bands: band names in file order, if the files have no band descriptions.
        unit: unit of the image values, if the files have no tag UNIT; ``reflectance`` (0 to 1) becomes DN of 1e-4.
        level: L1C (top of atmosphere) or L2A (surface), if you know it: a scene of another level is then not mapped.
        nodata: image value without an observation, in addition to what the files declare or mask.
        label_nodata: mask value that means unknown, in addition to -1, NaN and what a mask band or .msk file masks;
            nodata tags of masks are ignored.
        classes: class names of the ids 0, 1, ...
        class_values: mask values of the classes in their order, such as 0,255; by default 0, 1, ...
        frames: dates of each place: in one file, date by date, or in a folder with a file for each.
        keep_dates: numbers of the dates to keep, from 1, such as 3 for a dataset of one date with the same chips.
        undated: files with all dates may say no days: their dates are taken in the order of the file, oldest first.
        attribution: credit line for everything made from the dataset.
        tile_size: side of a chip in pixels, by default the side of the images; larger images are cut.
        block_chips: side of a block, in chips.
        gap_m: least distance in metres between splits made by location, by default one chip.
        gsd: pixel size in metres, for images without a CRS.
        seed: for the splits.
        assume_independent: accept images without a CRS; they are split by file.
    """

    image_suffix: str = ""
    mask_suffix: str = ""
    bands: tuple[str, ...] | None = None
    unit: Literal["reflectance_1e-4", "reflectance"] | None = None
    level: Level | None = None
    nodata: float | None = None
    label_nodata: int = IGNORE
    classes: tuple[str, ...] = Field(default=("background", "building"), min_length=2, max_length=128)  # int8
    class_values: tuple[int, ...] | None = None
    frames: int = Field(default=1, ge=1)
    keep_dates: tuple[int, ...] | None = None
    undated: bool = False
    attribution: str = "given images and masks"
    tile_size: int | None = Field(default=None, ge=8)
    block_chips: int = Field(default=4, ge=1)
    gap_m: float | None = Field(default=None, ge=0)
    gsd: float | None = Field(default=None, gt=0)
    seed: int = 0
    assume_independent: bool = False

    @model_validator(mode="after")
    def _one_value_per_class(self) -> "FolderOptions":
        values = self.class_values
        if values is not None and (len(values) != len(self.classes) or len(set(values)) != len(values)):
            raise ValueError(f"class_values {values}: expected one for each of {', '.join(self.classes)}")
        if values is not None and {IGNORE, self.label_nodata} & set(values):
            raise ValueError(f"class_values {values} contain {IGNORE} or label_nodata, which mean unknown")
        return self

    @model_validator(mode="after")
    def _kept_dates_are_there(self) -> "FolderOptions":
        kept = self.keep_dates
        if kept is not None and (not kept or list(kept) != sorted(set(kept) & set(range(1, self.frames + 1)))):
            raise ValueError(f"keep_dates {kept}: expected numbers from 1 to frames ({self.frames}), in their order")
        return self

    @property
    def kept_frames(self) -> int:
        """Dates of each chip."""
        return len(self.keep_dates) if self.keep_dates else self.frames

    @classmethod
    def checked(cls, values: dict[str, Any]) -> "FolderOptions":
        """Validate options.

        Raises:
            ConfigError: invalid values or unknown keys, each named.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(faults_of(error)) from error
