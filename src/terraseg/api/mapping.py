"""Making maps: `predict` whole scenes with a bundle, `adapt` it to another city, `export` it for faster runtimes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from terraseg.acquire.imported.options import ImageOptions
from terraseg.api.config import DATA_CONFIG, load_data_config
from terraseg.api.options import Option, StrPath
from terraseg.errors import ConfigError
from terraseg.prepare.config import PrepareConfig

if TYPE_CHECKING:
    from terraseg.contracts.bundle import Bundle
    from terraseg.contracts.product import Product
    from terraseg.mapping.adapt import Adaptation
    from terraseg.mapping.runtimes.parity import ExportRecord

_MODEL, _INPUT, _WINDOWS, _OUTPUT, _MACHINE = "model", "input", "windows", "output", "machine"


def predict(
    *,
    bundle: Annotated[StrPath | None, Option(_MODEL, one_of=_MODEL, required=True)] = None,
    config: Annotated[StrPath | None, Option(_MODEL, one_of=_MODEL, required=True)] = None,
    ckpt_path: Annotated[StrPath | None, Option(_MODEL)] = None,
    input: Annotated[  # noqa: A002 -- the name of the option
        StrPath | Sequence[StrPath], Option(_INPUT, one_of=_INPUT, also="predict_data_root", metavar="SCENE")
    ] = "data/raw",
    manifest: Annotated[StrPath | None, Option(_INPUT, one_of=_INPUT)] = None,
    output: Annotated[StrPath, Option(_OUTPUT)] = "results/predictions",
    crop: Annotated[int | None, Option(_WINDOWS, metavar="PX")] = None,
    overlap: Annotated[int | None, Option(_WINDOWS, metavar="PX")] = None,
    batch_size: Annotated[int, Option(_WINDOWS)] = 8,
    tta: Annotated[bool, Option(_WINDOWS)] = False,
    threshold: Annotated[float | None, Option(_OUTPUT, metavar="P")] = None,
    logits: Annotated[bool, Option(_OUTPUT)] = False,
    uncertainty: Annotated[bool, Option(_OUTPUT)] = False,
    share: Annotated[bool, Option(_OUTPUT)] = False,
    cells: Annotated[int | None, Option(_OUTPUT, metavar="M")] = None,
    polygons: Annotated[Sequence[str], Option(_OUTPUT, metavar="CLASS")] = (),
    probabilities: Annotated[bool, Option(_OUTPUT)] = False,
    simplify: Annotated[float | None, Option(_OUTPUT, metavar="M")] = None,
    min_area: Annotated[float, Option(_OUTPUT, metavar="M2")] = 0.0,
    mosaic: Annotated[Literal["date", "confidence"] | None, Option(_OUTPUT)] = None,
    device: Annotated[str, Option(_MACHINE, metavar="DEVICE")] = "auto",
    runtime: Annotated[str, Option(_MACHINE, metavar="RUNTIME")] = "auto",
    workers: Annotated[int | None, Option(_MACHINE, one_of="workers")] = None,
    scheduler: Annotated[str | None, Option(_MACHINE, one_of="workers", metavar="ADDRESS")] = None,
    retries: Annotated[int, Option(_MACHINE)] = 2,
    image: ImageOptions = ImageOptions(),  # noqa: B008 -- it can't be changed
) -> "list[Product]":
    """Map whole scenes with a trained model: probability, mask, polygons and a STAC item for each.

    Args:
        bundle: folder of the bundle, outputs/<experiment>/bundle.
        config: YAML of an experiment instead: its own bundle is used.
        ckpt_path: with ``config``: a checkpoint of the experiment instead of its bundle.
        input: a scene, a folder of scenes, a VRT, a STAC item, the http(s) address of a COG or an item, or an image
            such as a .SAFE product or any GeoTIFF with a CRS. Give several for the dates of a place: a model of
            several dates takes those on one pixel grid together.
        manifest: a list of scenes instead: .txt, .csv or .json.
        output: folder of the products; each has its own folder, named after the scene (the first date).
        crop: side of a window in pixels; by default the bundle's chip size.
        overlap: overlap of windows in pixels; by default a quarter of the crop.
        batch_size: windows in one forward pass.
        tta: average over the eight rotations and flips.
        threshold: probability from which a pixel belongs to the class; by default the bundle's.
        logits: also write the log-odds.
        uncertainty: also write the entropy of the probability.
        share: also write the covered share of pixels of 10 m, of a model of shares or of finer pixels.
        cells: also write share and area of the class in square cells of this side in metres, with their interval.
        polygons: of a model of more than two classes: those to write polygons of, each into files named after it.
        probabilities: of such a model: also write the probability of each class.
        simplify: tolerance of the polygons in metres; by default half a pixel.
        min_area: smallest area of a polygon in square metres.
        mosaic: also write one map of all scenes for each CRS, of the latest pixel (date) or the surest (confidence).
        device: auto, cpu, cuda, cuda:1 or mps.
        runtime: torch, torch-bf16, onnx, openvino, openvino-bf16, openvino-int8 or openvino-int8-bf16; auto: on a CPU
            the fastest one that `terraseg export` found within parity.
        workers: processes on this machine; by default one for each GPU.
        scheduler: address of a running Dask scheduler instead, ``tcp://HOST:PORT``.
        retries: how often a scene that failed is tried again, after all others.
        image: facts that an image does not state, such as date, bands and unit of a GeoTIFF.

    Returns:
        The finished products in the order of the scenes, then the mosaics.

    Raises:
        FailedScenesError: some of several scenes failed; all others are finished.
        ConfigError: neither bundle nor config, or both; or options that contradict each other.
        CheckpointError: the bundle or checkpoint is missing, damaged or foreign.
        SceneError: a scene can't be read or does not fit the model.
        OutputError: the disk is full, or the folder can't be written.
        BusyError: another run writes the same product.
    """
    from terraseg.core.machine.memory import reuse_freed_memory

    reuse_freed_memory()  # before the next imports: the threads that they start would get memory pools of their own
    from dataclasses import replace
    from functools import partial

    from terraseg.core.machine.parallel import open_workers
    from terraseg.core.windows import default_overlap
    from terraseg.mapping.inputs.manifest import read_manifest
    from terraseg.mapping.inputs.scenes import places_at, room_for_inputs
    from terraseg.mapping.mosaic import mosaic_products
    from terraseg.mapping.runtimes.pytorch import gpus_of
    from terraseg.mapping.scene import predict_scene
    from terraseg.mapping.scenes import (
        BundleSource,
        FailedScenesError,
        Outcome,
        check_names,
        map_places,
        open_places,
        opened,
    )
    from terraseg.mapping.shares import add_shares, check_shares

    model, output = _model(bundle, config, ckpt_path, device=device), Path(output)
    with room_for_inputs(output if scheduler else None) as folder:
        resampling = model.info.processing.resampling
        open_entry = partial(
            places_at, folder=folder, frames=model.info.dates, gsd=model.info.gsd, resampling=resampling,
            bands=model.info.bands, said=image,
        )  # fmt: skip
        outcomes: list[Outcome] = []
        if manifest is None:
            places = open_entry([input] if isinstance(input, str | Path) else input)
        else:
            places, outcomes = open_places(read_manifest(Path(manifest)), open_entry, retries=retries)
        check_names(places)
        check_shares(places, model.info, share=share, cells=cells)
        crop = crop or model.info.tile_size
        most = max(map(len, places), default=1)
        source = BundleSource(model, runtime=runtime, device=device, crop=crop, dates=most)
        options: dict[str, Any] = {
            "crop": crop,
            "overlap": default_overlap(crop) if overlap is None else overlap,
            "batch_size": batch_size,
            "threshold": model.info.threshold if threshold is None and len(model.info.classes) == 2 else threshold,
            "tta": tta,
            "logits": logits,
            "uncertainty": uncertainty,
            "polygons": tuple(polygons),
            "probabilities": probabilities,
            "simplify_m": simplify,
            "min_area_m2": min_area,
        }
        if scheduler is not None:  # its workers may run in other folders
            places = [tuple(replace(scene, path=scene.path.absolute()) for scene in place) for place in places]
            source, output = replace(source, bundle=replace(model, root=model.root.absolute())), output.absolute()
        with open_workers(workers=workers, scheduler=scheduler, gpus=gpus_of(device)) as crew:
            if manifest is None and len(places) == 1 and crew.count == 1:  # its error is raised as it is
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
            polygons=tuple(polygons),
            simplify_m=simplify,
            min_area_m2=min_area,
        )
    if share or cells is not None:
        for product in products:
            add_shares(product, share=share, cells=cells)
    return products


def export(
    *,
    bundle: StrPath,
    input: Annotated[StrPath | Sequence[StrPath], Option(metavar="SCENE")] = "data/raw",  # noqa: A002
    chips: int = 64,
    batch_size: int = 8,
) -> "ExportRecord":
    """Export a bundle's model for other runtimes; measure on real chips how exact and how fast each is.

    Args:
        bundle: folder of the bundle, outputs/<experiment>/bundle; the exported files go into its folder runtimes.
        input: scenes like those that the model was trained on, as for predict.
        chips: chips to cut: half that hold the class to compare on, half to calibrate the quantised model.
        batch_size: chips in one forward pass.

    Returns:
        Parity and speed of each runtime that this processor has.

    Raises:
        ConfigError: less than one chip.
        CheckpointError: the bundle is damaged, or PyTorch can't export the model.
        SceneError: no pixel of the scenes has an observation, or they do not fit the model.
        OutputError: the bundle can't be written.
    """
    from terraseg.mapping.runtimes.export import export as run

    return run(bundle=Path(bundle), input=input, chips=chips, batch_size=batch_size)


def adapt(
    *,
    bundle: StrPath,
    input: Annotated[StrPath | Sequence[StrPath], Option(metavar="SCENE")] = "data/raw",  # noqa: A002
    labels: StrPath = "data/osm_buildings",
    output: StrPath,
    config: StrPath | PrepareConfig = DATA_CONFIG,
    device: Annotated[str, Option(metavar="DEVICE")] = "auto",
) -> "Adaptation":
    """Adapt a trained model to another city by few labels: its probabilities and threshold, not its weights.

    Slope, intercept and threshold are fitted on the labelled ground of the scenes, as a training fits them on its
    validation split. So keep the ground of your test out of the labels.

    Args:
        bundle: folder of the bundle, outputs/<experiment>/bundle.
        input: scenes with labelled ground, as for predict.
        labels: footprint files or their folder; their extent is the labelled ground.
        output: folder of the adapted bundle, such as outputs/<name>/bundle.
        config: data config, whose section prepare has the label rule and the completeness; or that section.
        device: auto, cpu, cuda, cuda:1 or mps.

    Returns:
        The adapted bundle, and how the mean probability of the labelled ground changed.

    Raises:
        CheckpointError: the bundle is missing or damaged.
        LabelError: no labelled ground lies in the scenes, or it has only one class.
        SceneError: a scene can't be read or does not fit the model.
        OutputError: the output can't be written.
    """
    from terraseg.contracts.bundle import open_bundle
    from terraseg.mapping.adapt import adapt as run

    prepare = config if isinstance(config, PrepareConfig) else load_data_config(config).prepare
    scenes = [input] if isinstance(input, str | Path) else list(input)
    return run(open_bundle(bundle), scenes=scenes, labels=labels, output=Path(output), config=prepare, device=device)


def _model(bundle: StrPath | None, config: StrPath | None, ckpt_path: StrPath | None, *, device: str) -> "Bundle":
    if (bundle is None) == (config is None) or (ckpt_path is not None and config is None):
        given = {"--bundle": bundle, "--config": config, "--ckpt_path": ckpt_path}
        raise ConfigError(
            f"the model is given by {', '.join(name for name, value in given.items() if value) or 'nothing'}",
            expected="--bundle, or --config, or --config and --ckpt_path",
        )
    if config is None:
        from terraseg.contracts.bundle import open_bundle

        assert bundle is not None  # noqa: S101  # as was checked
        return open_bundle(bundle)
    from terraseg.learn.checkpoint_bundle import bundle_of_checkpoint, bundle_of_config
    from terraseg.mapping.runtimes.pytorch import torch_device

    if ckpt_path is None:
        return bundle_of_config(Path(config))
    return bundle_of_checkpoint(Path(config), Path(ckpt_path), device=torch_device(device))
