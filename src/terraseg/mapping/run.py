"""The step as the command line calls it: a bundle and scenes in, products out."""

from pathlib import Path

from terraseg.mapping.allocator import reuse_freed_memory
from terraseg.mapping.bundle import open_bundle
from terraseg.mapping.parity import open_predictor
from terraseg.mapping.predict import predict_scene
from terraseg.products import Product
from terraseg.scene import find_scenes


def predict(
    *,
    bundle: Path,
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
    """Map a scene, or each scene of a folder, with a bundle.

    Args:
        bundle: folder of the bundle.
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
        TerrasegError: what `predict_scene`, `open_bundle`, `open_predictor` and `find_scenes` raise.
    """
    reuse_freed_memory()
    scenes = find_scenes(input)
    model = open_bundle(bundle)
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
