"""Which images and masks to import, and the splits that folders or text files give them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from terraseg.contracts.dataset import SPLITS
from terraseg.errors import ConfigError, DatasetError
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_files import Pair, find_pairs

_NAMED = 5
"""Most file names in an error message."""


def pairs_of(
    images: Sequence[Path], masks: Sequence[Path], split_files: Sequence[Path], options: FolderOptions
) -> list[Pair]:
    """The pairs of one folder, or of one folder for each split.

    Args:
        images: one folder, or those of train, val and test.
        masks: as many folders; none: see `find_pairs`.
        split_files: the names of train, val and test, one in a line; none: folders give the splits, or nothing does.
        options: see `FolderOptions`.

    Raises:
        ConfigError: another number of folders or files.
        DatasetError: see `find_pairs`; or a split file that is missing, or names no file or one of another split.
    """
    three = f"one folder, or {len(SPLITS)} ({', '.join(SPLITS)})"
    if len(images) not in (1, len(SPLITS)) or len(masks) not in (len(images), *([0] if len(images) == 1 else [])):
        raise ConfigError(f"{len(images)} folders of images and {len(masks)} of masks", expected=f"{three} of each")
    if split_files and (len(split_files) != len(SPLITS) or len(images) > 1):
        found = f"{len(split_files)} split files and {len(images)} folders of images"
        raise ConfigError(found, expected=f"{len(SPLITS)} files ({', '.join(SPLITS)}) and one folder")
    if len(images) == 1:
        pairs = find_pairs(images[0], masks[0] if masks else None, options)
        return _dealt(pairs, split_files) if split_files else pairs
    pairs = [
        replace(pair, split=split)
        for split, image, mask in zip(SPLITS, images, masks, strict=True)
        for pair in find_pairs(image, mask, options)
    ]
    if len({pair.name for pair in pairs}) < len(pairs):
        pairs = [replace(pair, name=f"{pair.split}_{pair.name}") for pair in pairs]
    return pairs


def _dealt(pairs: Sequence[Pair], split_files: Sequence[Path]) -> list[Pair]:
    """The pairs that the files name, with their splits.

    A name is that of the image, whole or without its ends. It is the first of the columns, which commas separate; if
    that is another file, such as an image of another sensor, the file name of the mask in any column counts.
    """
    by_mask = {pair.mask.name: pair for pair in pairs}
    by_name = by_mask | {name: pair for pair in pairs for name in (pair.image.name, pair.image.stem, pair.name)}
    chosen: dict[str, Pair] = {}
    for split, path in zip(SPLITS, split_files, strict=True):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"the split file {path} can't be read ({error})", expected="names in lines") from error
        rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip(" ,")]
        names = [row[0] if row[0] in by_name else next((c for c in row if c in by_mask), row[0]) for row in rows]
        if unknown := [name for name in names if name not in by_name]:
            shown = ", ".join(unknown[:_NAMED]) + ", ..." * (len(unknown) > _NAMED)
            fix = "correct the file, --image-suffix or the folder"
            raise DatasetError(f"{path} names {len(unknown)} images that are not there: {shown}", fix=fix)
        for name in names:
            pair = by_name[name]
            other = chosen.setdefault(pair.name, replace(pair, split=split))
            if other.split != split:
                found = f"{pair.image.name} is in the split files of {other.split} and {split}"
                raise DatasetError(found, expected="each image in one split", fix="remove it from one of them")
    return list(chosen.values())
