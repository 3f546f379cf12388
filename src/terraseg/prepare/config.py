"""The ``prepare`` section of data_config.yaml: every key is read, unknown ones are refused."""

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from terraseg.contracts.splits import IGNORE, Split
from terraseg.core.bands import PRITHVI_BANDS, band
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import ConfigError
from terraseg.prepare.labels.rules import LabelRule


class SplitRule(Strict):
    """How the ground is divided into train, val and test.

    Attributes:
        kind: ``blocks``: squares of ``block_chips`` chips, assigned by chance, stratified by the density of the class.
            ``columns`` or ``rows``: three strips, train first, then val, then test. ``polygons``: areas that a file
            gives, such as cities, so that no city is in two splits; what lies in none of them is not used.
        block_chips: side of a block, in chips.
        gap_m: least distance between pixels of two splits, in metres; one chip where absent, never less.
        train, val, test: shares of the blocks (of the extent for strips); they add up to 1.
        seed: of the assignment, and of the folds.
        folds: number of folds for a cross-validation over the blocks of train and val, kind ``blocks`` only; which one
            a training uses is the datamodule's ``fold``. The test stays as it is.
        path: file of polygons with a CRS (GeoPackage, GeoJSON, GeoParquet), kind ``polygons`` only.
        column: its column that names the split, or with ``assign`` the city.
        assign: the split of each name in ``column``; ``{train: [Algiers, Oran], val: [Blida], test: [Setif]}``.
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
            raise ValueError(f"split {self.kind} knows no {', '.join(given)}: choose kind polygons, or drop them")
        if self.kind == "polygons" and (self.path is None or self.column is None):
            raise ValueError("split polygons needs path and column")
        if self.kind != "blocks" and self.folds is not None:
            raise ValueError(f"split {self.kind} can't make folds: choose kind blocks, or drop folds")
        names = [name for names in (self.assign or {}).values() for name in names]
        if len(set(names)) != len(names):
            raise ValueError("split assign gives a name to two splits")
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
        least_share: cells of which the labels cover less than this share of the built-up area become ignore.
    """

    path: str
    least_share: float = Field(default=0.5, gt=0, le=1)


class PrepareConfig(Strict):
    """The section ``prepare``.

    Attributes:
        bands: bands of the chips, names in any dialect; kept in this order.
        frames: dates of one place that a chip shows, for models of several dates: scenes on one pixel grid are the
            frames of a place, the first date first, and there must be so many. With 1 each scene gives its own chips.
        tile_size: side of a chip, in pixels.
        train_stride: step between train chips in pixels; ``tile_size`` where absent. Smaller means overlapping train
            chips. Chips of val and test overlap only where a block is no multiple of the chip.
        label_rule: see `LabelRule`.
        split: see `SplitRule`.
        label_shift: ``measure``: report how far the footprints lie off the imagery. ``apply``: move them back by that
            as well, or stop where it can't be told. Absent: not measured.
        completeness: see `Completeness`; absent: the labels are taken as complete within their extent.
    """

    bands: tuple[str, ...] = PRITHVI_BANDS
    frames: int = Field(default=1, ge=1)
    tile_size: int = Field(default=224, ge=8)
    train_stride: int | None = Field(default=None, ge=1)
    label_rule: LabelRule = LabelRule()
    split: SplitRule = SplitRule()
    label_shift: Literal["measure", "apply"] | None = None
    completeness: Completeness | None = None

    def label_rule_in_words(self) -> str:
        """The label rule, and whether footprints were moved."""
        moved = ", footprints moved onto the imagery" if self.label_shift == "apply" else ""
        return self.label_rule.in_words() + moved

    @field_validator("bands")
    @classmethod
    def _bands_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(band(name).name for name in value)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"bands {value} are empty or repeat one")
        return names

    @model_validator(mode="after")
    def _stride_fits(self) -> "PrepareConfig":
        if self.train_stride is not None and self.train_stride > self.tile_size:
            raise ValueError(f"train_stride {self.train_stride} leaves gaps between chips of {self.tile_size} px")
        return self


class FolderOptions(Strict):
    """How given files are to be read, and split where they aren't.

    Attributes:
        image_suffix, mask_suffix: ends of the file names that are left out of the tiles' names.
        bands: names in file order, where the files have no descriptions.
        unit: of the values where the files have no tag UNIT; ``reflectance`` (0 to 1) becomes DN of 1e-4.
        nodata: image value without an observation, where the files don't declare it.
        label_nodata: mask value that means unknown, besides -1; the nodata tags of masks are not believed.
        classes: names of the ids 0, 1, ...
        attribution: credit that everything made from the dataset carries.
        tile_size: side of a chip in pixels; larger images are cut. The images' own side where absent.
        block_chips: side of a block in chips.
        gap_m: least distance between splits made by location; one chip where absent.
        gsd: pixel size in metres, of images without a CRS.
        seed: of the splits.
        assume_independent: take images without a place on earth; they are split by file.
    """

    image_suffix: str = ""
    mask_suffix: str = ""
    bands: tuple[str, ...] | None = None
    unit: Literal["reflectance_1e-4", "reflectance"] | None = None
    nodata: float | None = None
    label_nodata: int = IGNORE
    classes: tuple[str, ...] = Field(default=("background", "building"), min_length=2, max_length=128)  # int8
    attribution: str = "given images and masks"
    tile_size: int | None = Field(default=None, ge=8)
    block_chips: int = Field(default=4, ge=1)
    gap_m: float | None = Field(default=None, ge=0)
    gsd: float | None = Field(default=None, gt=0)
    seed: int = 0
    assume_independent: bool = False

    @classmethod
    def checked(cls, values: dict[str, Any]) -> "FolderOptions":
        """Make options.

        Raises:
            ConfigError: values that can't be, each named.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(faults_of(error)) from error
