"""Statistics of some of the chips, such as the train chips of a fold, as the preparation computes those of train."""

import geopandas as gpd
import numpy as np

from terraseg.contracts.dataset import IGNORE, ChipDataset, Stats
from terraseg.contracts.statistics import TrainHistogram
from terraseg.core.files import file_lock, fingerprint, write_json
from terraseg.core.normalise import unobserved
from terraseg.core.progress import track
from terraseg.learn.chips.pack import open_pack, pack_folder


def chip_stats(dataset: ChipDataset, rows: gpd.GeoDataFrame) -> Stats:
    """Exact statistics of chips, each pixel once. They are kept beside the packed copy of the dataset.

    Args:
        dataset: of the chips.
        rows: of its tiles.parquet, at least one.

    Raises:
        DatasetError: see `open_pack`.
    """
    path = pack_folder(dataset) / "stats" / f"{fingerprint(rows['tile'].tolist())}.json"
    with file_lock(path.with_suffix(".lock"), wait=True):
        if not path.is_file():
            write_json(
                path, _counted(dataset, rows).stats(dataset.info.bands, classes=dataset.info.classes).model_dump()
            )
        return Stats.model_validate_json(path.read_text(encoding="utf-8"))


def _counted(dataset: ChipDataset, rows: gpd.GeoDataFrame) -> TrainHistogram:
    info, size = dataset.info, dataset.info.tile_size
    packs = {split: open_pack(dataset, split) for split in sorted(set(rows["split"]))}
    position = {split: {tile: index for index, tile in enumerate(pack.tiles)} for split, pack in packs.items()}
    kind = next(iter(packs.values())).images.dtype
    histogram = TrainHistogram(len(info.bands), least=int(np.iinfo(kind).min))
    blocks = list(rows.groupby("block"))  # chips of different blocks share no pixel
    for _, chips in track(blocks, description="statistics of the chips"):
        top, left = chips["row"].min(), chips["column"].min()
        seen = np.zeros((chips["row"].max() - top + size, chips["column"].max() - left + size), dtype=bool)
        for chip in chips.itertuples():
            window = seen[chip.row - top : chip.row - top + size, chip.column - left : chip.column - left + size]
            fresh = ~window
            window[...] = True
            pack, index = packs[chip.split], position[chip.split][chip.tile]
            for pixels in pack.images[index].reshape(info.frames, len(info.bands), size, size):
                histogram.add_pixels(pixels[:, fresh & ~unobserved(pixels, nodata=info.nodata)])
            mask = pack.masks[index]
            histogram.add_labels(mask[fresh & (mask != IGNORE)])
    return histogram
