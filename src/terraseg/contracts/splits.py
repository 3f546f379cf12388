"""The splits of a dataset, and the mask value that belongs to no class: light to import."""

from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

IGNORE = -1
"""Mask value of pixels that neither train nor test: nodata, cloud, unmapped."""
