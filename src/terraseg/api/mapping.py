"""The step as the command line calls it: a bundle and scenes in, products out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from terraseg.contracts.bundle import Bundle, open_bundle
from terraseg.contracts.product import Product
from terraseg.core.memory import reuse_freed_memory
from terraseg.core.tasks import open_workers
from terraseg.errors import ConfigError
from terraseg.mapping.inputs.manifest import read_manifest
from terraseg.mapping.inputs.scenes import places_at, room_for_inputs
from terraseg.mapping.mosaic import Rule, mosaic_products
from terraseg.mapping.runtimes.choose import open_predictor
from terraseg.mapping.runtimes.predictor import Predictor
from terraseg.mapping.runtimes.pytorch import torch_device
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.scenes import FailedScenesError, Outcome, map_places, open_places, opened, refuse_one_name


@dataclass(frozen=True)
class BundleSource:
    """A bundle on a runtime; see `terraseg.mapping.runtimes.choose.open_predictor`.

    Attributes:
        bundle: in a folder that all processes reach.
        runtime: what runs it.
        device: where.
        crop: side of the windows.
    """

    bundle: Bundle
    runtime: str
    device: str
    crop: int

    def open(self) -> Predictor:
        """The predictor."""
        return open_predictor(self.bundle, runtime=self.runtime, device=self.device, crop=self.crop)


def predict(
    *,
    bundle: Path | None = None,
    config: Path | None = None,
    ckpt_path: Path | None = None,
    input: str | Path | Sequence[str | Path],  # noqa: A002 -- the name of the option
    manifest: Path | None = None,
    output: Path,
    crop: int | None = None,
    overlap: int | None = None,
    batch_size: int = 16,
    threshold: float | None = None,
    tta: bool = False,
    logits: bool = False,
    uncertainty: bool = False,
    device: str = "auto",
    runtime: str = "auto",
    simplify_m: float | None = None,
    min_area_m2: float = 0.0,
    workers: int | None = None,
    scheduler: str | None = None,
    retries: int = 2,
    mosaic: Rule | None = None,
) -> list[Product]:
    """Map places, of one date each or as many as the model takes.

    Args:
        bundle: folder of the bundle; or else
        config: YAML of the experiment: its own bundle.
        ckpt_path: with ``config``, a checkpoint of the experiment instead of its bundle.
        input: a scene of contract 1, a folder of scenes of one kind, a VRT, a STAC item, or an http(s) address; or
            several of them. For a model of several dates those on one pixel grid are the dates of a place, see
            `terraseg.contracts.scene.group_places`.
        manifest: a list of these instead of ``input``, see `read_manifest`.
        output: folder of the products; each lies in a folder of its scene's name, that of the first date.
        crop: side of a window in pixels; what the model was trained with unless given.
        overlap: overlap of windows in pixels; a quarter of the crop unless given.
        batch_size: windows of one forward.
        threshold: of the probability; the bundle's unless given.
        tta: average over rotations and flips.
        logits: write the log-odds, too.
        uncertainty: write the entropy, too.
        device: ``auto``, ``cpu``, ``cuda``, ...
        runtime: what runs the model, see `open_predictor`.
        simplify_m: tolerance of the polygons in metres; half a pixel unless given.
        min_area_m2: least area of a polygon.
        workers: processes on this machine; one for each GPU unless given.
        scheduler: address of a Dask scheduler whose workers predict instead, see `open_workers`.
        retries: how often a place that failed is tried again, where there are several.
        mosaic: once all places are mapped, one map of them for each CRS, see `mosaic_products`.

    Returns:
        The finished products in the order of the places, and the mosaics.

    Raises:
        FailedScenesError: some of several places failed; all others are finished.
        ConfigError: neither bundle nor config, or both.
        TerrasegError: what `predict_scene`, `open_bundle`, `bundle_of_checkpoint`, `open_predictor` and `places_at`
            raise.
    """
    reuse_freed_memory()
    model = _model(bundle, config, ckpt_path, device=device)
    with room_for_inputs(output if scheduler else None) as folder:
        open_entry = partial(places_at, folder=folder, frames=model.info.frames)
        outcomes: list[Outcome] = []
        if manifest is None:
            places = open_entry([input] if isinstance(input, str | Path) else input)
        else:
            places, outcomes = open_places(read_manifest(manifest), open_entry, retries=retries)
        refuse_one_name(places)
        crop = crop or model.info.tile_size
        source = BundleSource(model, runtime=runtime, device=device, crop=crop)
        options: dict[str, Any] = {
            "crop": crop,
            "overlap": crop // 4 if overlap is None else overlap,
            "batch_size": batch_size,
            "threshold": model.info.threshold if threshold is None else threshold,
            "tta": tta,
            "logits": logits,
            "uncertainty": uncertainty,
            "simplify_m": simplify_m,
            "min_area_m2": min_area_m2,
        }
        if scheduler is not None:  # its workers may run in other folders
            places = [tuple(replace(scene, path=scene.path.absolute()) for scene in place) for place in places]
            source, output = replace(source, bundle=replace(model, root=model.root.absolute())), output.absolute()
        with open_workers(workers=workers, scheduler=scheduler, device=device) as crew:
            if manifest is None and len(places) == 1 and crew.count == 1:  # whose error is told as it is
                outcomes = [Outcome(places[0][0].name, predict_scene(places[0], opened(source), output, **options))]
            else:
                outcomes += map_places(places, source, output, workers=crew, retries=retries, options=options)
    products = [outcome.product for outcome in outcomes if outcome.product]
    if len(products) < len(outcomes):
        raise FailedScenesError(outcomes)
    if mosaic is not None:
        products += mosaic_products(
            list(zip(places, products, strict=True)),
            opened(source),
            output,
            rule=mosaic,
            threshold=options["threshold"],
            simplify_m=simplify_m,
            min_area_m2=min_area_m2,
        )
    return products


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
    from terraseg.learn.training.make_bundle import bundle_of_checkpoint, bundle_of_config  # imports TerraTorch: 15 s

    if ckpt_path is None:
        return bundle_of_config(config)
    return bundle_of_checkpoint(config, ckpt_path, device=torch_device(device))
