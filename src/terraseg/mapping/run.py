"""The step as the command line calls it: a bundle and scenes in, products out."""

from pathlib import Path

from terraseg.errors import ConfigError
from terraseg.mapping.allocator import reuse_freed_memory
from terraseg.mapping.bundle import Bundle, open_bundle
from terraseg.mapping.parity import open_predictor
from terraseg.mapping.predict import predict_scene
from terraseg.mapping.runtime import torch_device
from terraseg.products import Product
from terraseg.scene import find_scenes


def predict(
    *,
    bundle: Path | None = None,
    config: Path | None = None,
    ckpt_path: Path | None = None,
    input: Path,  # noqa: A002 -- the name of the option
    output: Path,
    crop: int | None = None,
    overlap: int | None = None,
    batch_size: int = 16,
    threshold: float | None = None,
    tta: bool = False,
    device: str = "auto",
    runtime: str = "auto",
    simplify_m: float | None = None,
    min_area_m2: float = 0.0,
) -> list[Product]:
    """Map a scene, or each scene of a folder, with a trained model.

    Args:
        bundle: folder of the bundle; or else
        config: YAML of the experiment: its own bundle.
        ckpt_path: with ``config``, a checkpoint of the experiment instead of its bundle.
        input: a scene of contract 1, or a folder of scenes of one kind.
        output: folder of the products; each lies in a folder of its scene's name.
        crop: side of a window in pixels; what the model was trained with unless given.
        overlap: overlap of windows in pixels; a quarter of the crop unless given.
        batch_size: windows of one forward.
        threshold: of the probability; the bundle's unless given.
        tta: average over rotations and flips.
        device: ``auto``, ``cpu``, ``cuda``, ...
        runtime: what runs the model, see `open_predictor`.
        simplify_m: tolerance of the polygons in metres; half a pixel unless given.
        min_area_m2: least area of a polygon.

    Returns:
        The finished products, sorted by scene.

    Raises:
        ConfigError: neither bundle nor config, or both.
        TerrasegError: what `predict_scene`, `open_bundle`, `bundle_of_checkpoint`, `open_predictor` and `find_scenes`
            raise.
    """
    reuse_freed_memory()
    scenes = find_scenes(input)
    model = _model(bundle, config, ckpt_path, device=device)
    crop = crop or model.info.tile_size
    predictor = open_predictor(model, runtime=runtime, device=device, crop=crop)
    return [
        predict_scene(
            scene,
            predictor,
            output,
            crop=crop,
            overlap=crop // 4 if overlap is None else overlap,
            batch_size=batch_size,
            threshold=model.info.threshold if threshold is None else threshold,
            tta=tta,
            simplify_m=simplify_m,
            min_area_m2=min_area_m2,
        )
        for scene in scenes
    ]


def _model(bundle: Path | None, config: Path | None, ckpt_path: Path | None, *, device: str) -> Bundle:
    if (bundle is None) == (config is None) or (ckpt_path is not None and config is None):
        given = {"--bundle": bundle, "--config": config, "--ckpt_path": ckpt_path}
        raise ConfigError(
            f"the model is given by {', '.join(name for name, value in given.items() if value) or 'nothing'}",
            expected="--bundle, or --config, or --config and --ckpt_path",
        )
    if bundle is not None:
        return open_bundle(bundle)
    assert config is not None  # noqa: S101  # as was checked
    from terraseg.learn.bundling import bundle_of_checkpoint, bundle_of_config  # imports TerraTorch: 15 s

    if ckpt_path is None:
        return bundle_of_config(config)
    return bundle_of_checkpoint(config, ckpt_path, device=torch_device(device))
