"""Images that are no scenes yet, such as a .SAFE product or an export: made to scenes for one run."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terraseg.acquire.imported.options import ImageOptions
from terraseg.acquire.imported.scene import find_image, holds_product, write_scene
from terraseg.contracts.imagery.processing import Resampling
from terraseg.contracts.scene import Scene, open_scene
from terraseg.core.files import GEOTIFF, files_in, write_json
from terraseg.mapping.inputs.remote import url_of
from terraseg.mapping.inputs.vrt import is_vrt, sources

_PRODUCTS = (".zip", ".xml", ".jp2")

GIVEN = "given image"
"""Credit line of an image whose source nobody states."""


def is_image(path: Path) -> bool:
    """Whether a file or folder is an image without the provenance that a scene has."""
    if path.is_dir():
        rasters = files_in(path, GEOTIFF)
        return holds_product(path) or (bool(rasters) and not any(map(_has_item, rasters)))
    if not path.is_file():
        return False
    if is_vrt(path):
        of = sources(path)
        return not _has_item(path) and not any(
            url_of(name) or is_vrt(Path(name)) or _has_item(Path(name)) for name in of
        )
    return path.suffix.lower() in _PRODUCTS or (path.suffix.lower() in GEOTIFF and not _has_item(path))


def _has_item(path: Path) -> bool:
    return path.with_suffix(".json").is_file()


def scene_of_image(
    path: Path, folder: Path, *, bands: Sequence[str] | None, resampling: Resampling | None, said: ImageOptions
) -> Scene:
    """Write an image as a scene into a folder of the run.

    Args:
        path: the image.
        folder: of the run; the scene can be read as long as it exists.
        bands: those that the model takes, if the image names its bands; None for all.
        resampling: see `terraseg.mapping.inputs.scenes.scenes_at`; None for bilinear.
        said: what the user says of the image. A level that nobody knows is not compared with the model's.

    Raises:
        SceneError: see `terraseg.acquire.imported.scene.write_scene`.
    """
    found = find_image(path)
    named = {layer.name for layer in found.layers}
    chosen: dict[str, Any] = {
        "bands": tuple(name for name in bands or () if name in named) or None,
        "resampling": resampling,
        "attribution": None if "attribution" in found.stated else GIVEN,
    }
    options = ImageOptions.model_validate(
        {**{key: value for key, value in chosen.items() if value}, **said.model_dump(exclude_defaults=True)}
    )
    scene = write_scene(found, Path(tempfile.mkdtemp(dir=folder)), options=options, level_needed=False)
    item = {**scene.item, "links": [{"rel": "self", "href": str(path.resolve())}, *scene.item["links"]]}
    write_json(scene.path.with_suffix(".json"), item)
    when = path.stat().st_mtime_ns  # a stopped run resumes: the same image gives the same file
    os.utime(scene.path, ns=(when, when))
    return open_scene(scene.path)
