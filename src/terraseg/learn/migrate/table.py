"""What TerraTorch's own configs say, now and since 2024, and what an experiment of terraseg says instead.

The check, the conversion and docs/migration.md all use these tables.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BACKBONES = {
    **dict.fromkeys(("prithvi_100", "prithvi_100M", "prithvi_100m", "prithvi_vit_100"), "prithvi_eo_v1_100"),
    **dict.fromkeys(("prithvi_300", "prithvi_300M", "prithvi_vit_300"), "prithvi_eo_v2_300"),
    **dict.fromkeys(("prithvi_600", "prithvi_600M", "prithvi_vit_600"), "prithvi_eo_v2_600"),
    "prithvi_vit_tiny": "prithvi_eo_tiny",
    **{f"terramind_{size}": f"terramind_v1_{size}" for size in ("tiny", "small", "base", "large")},
}
"""Names of backbones that TerraTorch no longer knows, with today's."""

GONE = {
    "prithvi_swin_": "TerraTorch no longer offers Prithvi's Swin backbones: choose one of `terraseg models`",
    "clay": "terraseg has no Clay backbone: choose one of `terraseg models`",
}
"""Beginnings of the names of backbones without a successor."""

DEPTHS = {"prithvi_eo_tiny": 4, "_300": 24, "_large": 24, "_600": 32}
"""Blocks of Prithvi and TerraMind by a part of the name; 12 if none fits."""

MONITORS = {
    "val_loss": "val/loss",
    **dict.fromkeys(("val/Multiclass_Jaccard_Index", "val/mIoU"), "val/miou"),
    "val/Multiclass_F1_Score": "val/f1",
}
"""What a callback monitors; everything else that is not logged becomes val/iou."""


@dataclass(frozen=True)
class Rule:
    """One old key.

    Attributes:
        to: today's key, relative to the ``init_args`` of its section; or "" if there is none.
        note: what else to know.
    """

    to: str
    note: str = ""

    @property
    def is_lost(self) -> bool:
        """Nothing stands for the key, neither in the new file nor in the dataset."""
        return not self.to and "data import" not in self.note


_SIZE = Rule("", "the size of a chip is the dataset's: `data import --tile-size`")
_FILE = Rule("weights", "the path of the file")
_CHANNELS = Rule("", "follows from the bands; `backbone_in_chans` for a backbone of timm")
_FOLDERS = Rule("root", "`data import --images`; `root` is the dataset that it makes")
_MASKS = Rule("root", "`data import --masks`")
_SPLITS = Rule("root", "`data import --split-files`; each line is a whole name, not a part of one")
_GLOB = Rule("root", "`data import --image-suffix`, the end of the name")
_NOTHING = Rule("", "changes nothing in terraseg")

MODEL_ARGS: Mapping[str, Rule] = {
    "backbone": Rule("model_args.backbone", "today's name"),
    "pretrained": Rule("weights", "`true` is `hub`, `false` is `random`"),
    "backbone_pretrained": Rule("weights", "`true` is `hub`, `false` is `random`"),
    "backbone_ckpt_path": _FILE,
    "backbone_pretrained_cfg_overlay": _FILE,
    "pretrained_cfg_overlay": _FILE,
    "bands": Rule("model_args.backbone_bands", "`SMPModelFactory` keeps `bands`"),
    "num_frames": Rule("model_args.backbone_num_frames"),
    "in_channels": _CHANNELS,
    "backbone_in_channels": _CHANNELS,
    "backbone_in_chans": _CHANNELS,
    "img_size": _SIZE,
    "backbone_img_size": _SIZE,
    "backbone_pretrain_img_size": _SIZE,
    "post_backbone_ops": Rule("model_args.necks"),
    "decoder_scale_modules": Rule("model_args.necks", "the neck LearnedInterpolateToPyramidal"),
    "prepare_features_for_image_model": Rule("", "the neck ReshapeTokensToImage does this"),
}
"""Keys of ``model.init_args.model_args``."""

TASK: Mapping[str, Rule] = {
    "model_factory": Rule("model_factory", "`PrithviModelFactory`, or none, is `EncoderDecoderFactory`"),
    "loss": Rule("loss", "`jaccard` is `lovasz`, its surrogate that leaves out unknown pixels"),
    "ignore_index": Rule("", "`data import --label-nodata`: unknown pixels are always -1 in a dataset"),
    "class_names": Rule("", "`data import --classes`"),
    "lr_overrides": Rule("lr_overrides", "the parameters of the backbone are `encoder.`"),
    "class_weights": Rule("class_weights", "only with the loss `ce`"),
    "output_most_probable": Rule("output_on_inference", "`false` is `probabilities`"),
    "output_on_inference": Rule("output_on_inference", "one kind"),
    "aux_heads": Rule("", "terraseg trains one head"),
    "aux_loss": Rule("", "terraseg trains one head"),
    "freeze_head": Rule("", "terraseg always trains the head"),
    "test_dataloaders_names": Rule("", "a dataset has one test split"),
    "path_to_record_metrics": Rule("", "metrics.csv is always written"),
    "tiled_inference_on_testing": Rule("", "a test runs on whole chips"),
    "tiled_inference_on_validation": Rule("", "a validation runs on whole chips"),
}
"""Keys of ``model.init_args``."""

DATA: Mapping[str, Rule] = {
    **{f"{split}_data_root": _FOLDERS for split in ("train", "val", "test")},
    "data_root": _FOLDERS,
    **{f"{split}_label_data_root": _MASKS for split in ("train", "val", "test")},
    "label_data_root": _MASKS,
    **{f"{split}_split": _SPLITS for split in ("train", "val", "test")},
    "img_grep": _GLOB,
    "image_grep": _GLOB,
    "label_grep": Rule("root", "`data import --mask-suffix`, the end of the name"),
    "dataset_bands": Rule("root", "`data import --bands`"),
    "output_bands": Rule("bands"),
    "bands": Rule("bands"),
    "filter_indices": Rule("", "bands are chosen by name: `bands`"),
    "constant_scale": Rule("root", "`data import --unit`: `reflectance_1e-4` for 0.0001, else `reflectance`"),
    "means": Rule("", "measured on the train split of the dataset"),
    "stds": Rule("", "measured on the train split of the dataset"),
    "num_classes": Rule("root", "`data import --classes`"),
    "class_names": Rule("root", "`data import --classes`"),
    "reduce_zero_label": Rule("root", "`data import --class-values 1,2,... --label-nodata 0`"),
    "no_label_replace": Rule("", "unknown pixels are always -1"),
    "no_data_replace": Rule("", "nodata stays nodata; `data import --nodata` for an undeclared value"),
    "img_size": _SIZE,
    "train_transform": Rule("augment", "flips and rotations only; a crop is `data import --tile-size`"),
    "val_transform": Rule("", "chips are validated as they are"),
    "test_transform": Rule("", "chips are tested as they are"),
    "modalities": Rule("", "Sentinel-2 alone"),
    "predict_data_root": Rule("", "`--data.init_args.predict_data_root` of `terratorch predict`"),
    **dict.fromkeys(
        (
            "ignore_split_file_extensions", "allow_substring_split_file", "allow_substring_file_names", "rgb_indices",
            "rgb_modality", "drop_last", "pin_memory", "check_stackability", "skip_file_checks", "task",
            "expand_temporal_dimension", "persistent_workers",
        ),
        _NOTHING,
    ),
}  # fmt: skip
"""Keys of ``data.init_args`` (and ``dict_kwargs``) of the stock datamodules."""

OTHERS: Mapping[str, Rule] = {
    "optimizer": Rule("optimizer", "with `lr` and `optimizer_hparams` in `model.init_args`"),
    "lr_scheduler": Rule("scheduler", "with `scheduler_hparams` in `model.init_args`; as long as the training"),
    "trainer.callbacks": Rule(
        "", "ModelCheckpoint of `val/iou` and of the last step; MetricsTable, Timings, BundleWriter"
    ),
    "trainer.logger": Rule("", "TensorBoardLogger in the experiment's folder; others: docs/scale.md"),
    "trainer.default_root_dir": Rule("", "outputs/NAME, the experiment's folder"),
    "trainer.enable_checkpointing": Rule("", "checkpoints are always written"),
    "trainer.gpus": Rule("", "`trainer.devices`"),
}
"""Sections and keys beside model and data."""

KEPT_TASK = (
    "lr", "optimizer", "optimizer_hparams", "scheduler", "scheduler_hparams", "freeze_backbone",
    "freeze_decoder", "plot_on_val", "tiled_inference_parameters", "weights", "positive_class",
)  # fmt: skip
KEPT_ARGS = ("decoder", "necks", "num_classes", "rescale", "peft_config", "model")
KEPT_PREFIXES = ("backbone_", "decoder_", "head_", "smp_")
"""What stays as it is."""


def markdown() -> str:
    """The tables as docs/migration.md shows them."""
    return "\n".join(["| old | today | |", "|---|---|---|", *_rows()])


def _rows() -> Iterator[str]:
    sections = (
        ("model.init_args.model_args.", "model.init_args.", MODEL_ARGS),
        ("model.init_args.", "model.init_args.", TASK),
        ("data.init_args.", "data.init_args.", DATA),
        ("", "model.init_args.", OTHERS),
    )
    for before, today, rules in sections:
        same: dict[Rule, list[str]] = {}
        for key, rule in rules.items():
            same.setdefault(rule, []).append(f"`{before}{key}`")
        for rule, keys in same.items():
            yield f"| {', '.join(keys)} | {f'`{today}{rule.to}`' if rule.to else ''} | {rule.note} |"
    names: dict[str, list[str]] = {}
    for old, name in BACKBONES.items():
        names.setdefault(name, []).append(f"`{old}`")
    for name, olds in names.items():
        yield f"| backbone {', '.join(olds)} | `{name}` | |"
    yield from (f"| backbone `{start}...` | | {note} |" for start, note in GONE.items())
    yield from (f"| monitor `{old}` | `{name}` | |" for old, name in MONITORS.items())
