"""Making datasets: `preprocess` scenes and footprints, or `import_folders` of images and masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from terraseg.api.config import DATA_CONFIG, load_data_config
from terraseg.api.options import StrPath
from terraseg.prepare.config import FolderOptions, PrepareConfig

if TYPE_CHECKING:
    from terraseg.contracts.dataset import ChipDataset


def preprocess(
    *,
    input: StrPath = "data/raw",  # noqa: A002 -- the name of the option
    labels: StrPath = "data/osm_buildings",
    output: StrPath = "data/processed",
    tile_size: int | None = None,
    config: StrPath | PrepareConfig = DATA_CONFIG,
) -> "ChipDataset":
    """Make the dataset: labels by a stated rule, chips, splits without leakage, statistics of train, an audit.

    If the same dataset is already there, made from the same inputs with the same config, nothing happens.

    Args:
        input: a scene or a folder of scenes.
        labels: a file of footprints or a folder of such files.
        output: folder of the dataset; replaced as a whole, and only if it is a dataset or empty.
        tile_size: side of a chip in pixels; by default the config's.
        config: data config; its section ``prepare`` is read.

    Returns:
        The dataset.

    Raises:
        ConfigError: the config can't be read.
        SceneError: there is no scene, a band is missing, or scenes overlap on different grids.
        LabelError: no footprint lies in the scenes.
        SplitError: too little ground for the splits, or the audit found a leak.
        OutputError: the output folder holds something else, or the disk is full.
    """
    from terraseg.prepare.preprocess import preprocess as make

    size = {} if tile_size is None else {"tile_size": tile_size}
    if isinstance(config, PrepareConfig):
        settings = PrepareConfig.model_validate({**config.model_dump(), **size})
    else:
        settings = load_data_config(config, overrides={"prepare": size}).prepare
    return make(scenes=input, labels=labels, output=output, config=settings)


def import_folders(
    *,
    images: StrPath | Sequence[StrPath],
    masks: StrPath | Sequence[StrPath] | None = None,
    split_files: Sequence[StrPath] | None = None,
    dates: StrPath | None = None,
    output: StrPath = "data/processed",
    options: FolderOptions = FolderOptions(),  # noqa: B008 -- it can't be changed
) -> "ChipDataset":
    """Make a dataset of your own images and masks.

    Folders ``train``, ``val`` and ``test``, three folders, or split files are kept as splits, and audited. Other images
    are split by location. A folder of Sen1Floods11, as published, needs no other option.

    Args:
        images: folder of GeoTIFFs, or of the folders train, val and test; or three folders, in this order.
        masks: folder or folders of their masks; by default each split has the folders input and ground_truth.
        split_files: three text files with the names of the images of train, val and test, one in a line; of
            Sen1Floods11 also the names of its own lists, such as ``train valid bolivia``.
        dates: CSV with the days of several dates: a file, then its days, in each line; by default tags, band names or
            file names say them.
        output: folder of the dataset; replaced as a whole, and only if it is a dataset or empty.
        options: how to read and split the files.

    Returns:
        The dataset.

    Raises:
        ConfigError: another number of folders or split files.
        DatasetError: files without a partner, or a name in a split file without a file.
        SceneError: images that can't be read, differ in bands, or have no place on earth.
        LabelError: masks that can't be read, or hold unknown classes.
        SplitError: too few images for the splits, or the audit found a leak.
        OutputError: the output folder holds something else, or the disk is full.
    """
    from terraseg.prepare.import_folders import import_folders as make

    return make(images=images, masks=masks, split_files=split_files, dates=dates, output=output, options=options)


def sen1floods11(*, output: StrPath = "data/sen1floods11", url: str | None = None) -> Path:
    """Download the hand-labelled part of Sen1Floods11, for `import_folders`; run it again to continue.

    The 446 chips are about 1 GB. What is there is not downloaded again.

    Args:
        output: folder of the data set.
        url: address of a copy; by default the one of its authors.

    Returns:
        The folder.

    Raises:
        CatalogueError: the address can't be reached, or has no such files.
        DatasetError: a list of its chips has another form.
        OutputError: the disk is full or the folder can't be written.
    """
    from terraseg.acquire.published import PublishedFiles
    from terraseg.core.progress import track
    from terraseg.prepare.sen1floods11 import LISTS, URL, listed_files

    with PublishedFiles(url or URL, Path(output)) as published:
        lists = [published.fetch(path) for path in LISTS]
        for path in track(listed_files(lists), "download files"):
            published.fetch(path)
    return Path(output)
