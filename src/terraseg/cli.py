"""The command line: one verb a step of the way of the data.

Heavy imports stay inside the verbs, so that ``--help`` answers at once.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from terraseg import __version__
from terraseg.errors import ConfigError, TerrasegError

_DATA_CONFIG = Path("configs/data_config.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` where absent.

    Returns:
        The exit code: 0, or 2 for what the user can mend, or 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    _start_logging(verbose=options.verbose)
    try:
        options.run(options)
    except TerrasegError as error:
        print(f"terraseg: {error}", file=sys.stderr)  # noqa: T201  # the one line that the user gets
        return 2
    except KeyboardInterrupt:
        print("terraseg: stopped; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="terraseg", description="From an area of interest to a tested map.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what the libraries say, too")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    data = verbs.add_parser("data", help="download, labels, city, preprocess, import").add_subparsers(
        required=True, metavar="STEP"
    )
    _download(data)
    _labels(data)
    _city(data)
    _preprocess(data)
    _import(data)
    _check(verbs)
    _tune(verbs)
    _predict(verbs)
    _export(verbs)
    _evaluate(verbs)
    _compare(verbs)
    _visualize(verbs)
    _models(verbs)
    _serve(verbs)
    _demo(verbs)
    return parser


_Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _verb(verbs: _Verbs, name: str, run: Callable[[argparse.Namespace], None], help_: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=help_, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _download(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Download Sentinel-2 for an area of interest: a clean composite with its provenance in data/raw."""
        if options.sample:
            from terraseg.sample.brandenburg import download_sample
            from terraseg.sample.weights import fetch_efficientnet_lite0

            download_sample(options.output, options.labels_output)
            fetch_efficientnet_lite0(options.weights_output)
            return
        from terraseg.api.acquire import download
        from terraseg.api.config import load_data_config

        config = load_data_config(options.config)
        if config.acquire is None:
            raise ConfigError(f"{options.config} has no section acquire", fix="docs/data.md lists its keys")
        download(aoi=options.aoi, output=options.output, config=config.acquire, scheduler=options.scheduler)

    parser = _verb(verbs, "download", run, "Sentinel-2 for an area of interest")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--aoi", type=Path, help="polygon file of the area of interest")
    what.add_argument("--sample", action="store_true", help="the demo's scene, labels and ImageNet weights instead")
    parser.add_argument("--output", type=Path, default=Path("data/raw"), help="folder of the scenes")
    parser.add_argument("--labels-output", type=Path, default=Path("data/osm_buildings"), help="with --sample")
    parser.add_argument("--weights-output", type=Path, default=Path("data/weights"), help="with --sample")
    parser.add_argument("--config", type=Path, default=_DATA_CONFIG, help="its section acquire is read")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler, tcp://HOST:PORT")


def _labels(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Get footprints for an area of interest: from OpenStreetMap or files, cleaned, in data/osm_buildings."""
        from terraseg.api.acquire import labels
        from terraseg.api.config import load_data_config

        labels(aoi=options.aoi, output=options.output, config=load_data_config(options.config).labels)

    parser = _verb(verbs, "labels", run, "footprints for an area of interest")
    parser.add_argument("--aoi", type=Path, required=True, help="polygon file of the area of interest")
    parser.add_argument("--output", type=Path, default=Path("data/osm_buildings"), help="folder of the footprints")
    parser.add_argument("--config", type=Path, default=_DATA_CONFIG, help="its section labels is read")


def _city(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Make a synthetic city: a clear Sentinel-2 scene in raw, and in footprints every building that it shows."""
        from terraseg.sample.city.make import make_city_scene

        make_city_scene(options.output, size=options.size, seed=options.seed)

    parser = _verb(verbs, "city", run, "a synthetic city, whose buildings are all known")
    parser.add_argument("--output", type=Path, default=Path("data/city"), help="gets the folders raw and footprints")
    parser.add_argument("--size", type=int, default=1536, help="side in pixels of 10 m")
    parser.add_argument("--seed", type=int, default=0, help="of the city")


def _preprocess(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Make the dataset: labels by a stated rule, chips, splits without leakage, statistics of train, an audit."""
        from terraseg.api.config import load_data_config
        from terraseg.prepare.preprocess import preprocess

        size = {} if options.tile_size is None else {"tile_size": options.tile_size}
        config = load_data_config(options.config, overrides={"prepare": size})
        preprocess(scenes=options.input, labels=options.labels, output=options.output, config=config.prepare)

    parser = _verb(verbs, "preprocess", run, "chips, masks and splits")
    parser.add_argument("--input", type=Path, default=Path("data/raw"), help="a scene or a folder of scenes")
    parser.add_argument("--labels", type=Path, default=Path("data/osm_buildings"), help="footprints or their folder")
    parser.add_argument("--output", type=Path, default=Path("data/processed"), help="folder of the dataset")
    parser.add_argument("--tile-size", type=int, help="side of a chip in pixels; goes before the config's")
    parser.add_argument("--config", type=Path, default=_DATA_CONFIG, help="its section prepare is read")


def _import(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Make a dataset of given images and masks: of train/val/test folders, or split by location."""
        from terraseg.prepare.import_files import FolderOptions
        from terraseg.prepare.import_folders import import_folders

        given = {key: value for key, value in vars(options).items() if key in FolderOptions.model_fields}
        import_folders(
            images=options.images, masks=options.masks, output=options.output, options=FolderOptions.checked(given)
        )

    parser = _verb(verbs, "import", run, "a dataset of given images and masks")
    parser.add_argument("--images", type=Path, required=True, help="folder of GeoTIFFs, or of train, val and test")
    parser.add_argument("--masks", type=Path, help="their masks; where absent, each split has input and ground_truth")
    parser.add_argument("--output", type=Path, default=Path("data/processed"), help="folder of the dataset")
    parser.add_argument(
        "--image-suffix", default="", help="of file names, such as _S2Hand, left out of the tiles' names"
    )
    parser.add_argument("--mask-suffix", default="", help="the same for the masks, such as _LabelHand")
    parser.add_argument("--bands", type=_list, help="names of the bands in file order, B02,B03; where not described")
    parser.add_argument("--unit", choices=("reflectance_1e-4", "reflectance"), help="of the values; where not tagged")
    parser.add_argument("--nodata", type=float, help="value without observation, where the files don't say it")
    parser.add_argument("--label-nodata", type=int, default=-1, help="value of a mask that means unknown")
    parser.add_argument("--classes", type=_list, default=["background", "building"], help="names of 0, 1, ...")
    parser.add_argument("--attribution", default="given images and masks", help="credit that every map will carry")
    parser.add_argument("--tile-size", type=int, help="side of a chip in pixels; the images' where absent")
    parser.add_argument("--block-chips", type=int, default=4, help="side of a block in chips, of splits by location")
    parser.add_argument("--gap-m", type=float, help="least metres between splits by location; a chip where absent")
    parser.add_argument("--gsd", type=float, help="pixel size in metres, of images without a CRS")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    parser.add_argument(
        "--assume-independent", action="store_true", help="split images without a place on earth by file, unaudited"
    )


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _check(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Check an experiment before it trains: data, config and model; each fault with its fix."""
        from rich.console import Console

        from terraseg.learn.check.run import check

        console = Console(highlight=False, markup=False, soft_wrap=True)
        findings = check(options.experiment, root=options.root, model=not options.no_model)
        for finding in findings:
            console.print(f"{finding.severity}: {finding}", style="red" if finding.severity == "error" else "yellow")
        if errors := sum(finding.severity == "error" for finding in findings):
            raise ConfigError(f"{options.experiment} has {errors} error{'s' * (errors > 1)}", fix="see the lines above")
        console.print(f"sound: {options.experiment}")

    parser = _verb(verbs, "check", run, "find what a training would get wrong")
    parser.add_argument("experiment", type=Path, metavar="CONFIG", help="one of configs/")
    parser.add_argument("--root", type=Path, help="another dataset than the config's")
    parser.add_argument("--no-model", action="store_true", help="leave out what needs TerraTorch: 2 s instead of 20 s")


def _tune(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Search hyperparameters by short trainings, scored on validation; run again, it goes on where it was."""
        from terraseg.learn.tune.search import tune

        tune(options.experiment, search=options.search, root=options.root, output=options.output)

    parser = _verb(verbs, "tune", run, "search hyperparameters")
    parser.add_argument("experiment", type=Path, metavar="CONFIG", help="one of configs/")
    parser.add_argument("--search", type=Path, default=Path("configs/tune.yaml"), help="budget and search space")
    parser.add_argument("--root", type=Path, help="another dataset than the config's")
    parser.add_argument("--output", type=Path, help="folder of the study; outputs/<experiment>/tune where absent")


def _predict(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Map whole scenes with a trained model: probability, mask, polygons and a STAC item for each."""
        from terraseg.core.memory import reuse_freed_memory

        reuse_freed_memory()  # first of all: the threads that the next imports start would get pools of their own
        from rich.console import Console

        from terraseg.api.mapping import predict
        from terraseg.mapping.scenes import FailedScenesError

        try:
            predict(
                bundle=options.bundle,
                config=options.config,
                ckpt_path=options.ckpt_path,
                input=options.input,
                manifest=options.manifest,
                output=options.output,
                crop=options.crop,
                overlap=options.overlap,
                batch_size=options.batch_size,
                threshold=options.threshold,
                tta=options.tta,
                logits=options.logits,
                uncertainty=options.uncertainty,
                device=options.device,
                runtime=options.runtime,
                simplify_m=options.simplify,
                min_area_m2=options.min_area,
                workers=options.workers,
                scheduler=options.scheduler,
                retries=options.retries,
                mosaic=options.mosaic,
            )
        except FailedScenesError as error:
            Console(stderr=True).print(error.table())
            raise

    parser = _verb(verbs, "predict", run, "map whole scenes")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--bundle", type=Path, help="outputs/<experiment>/bundle")
    model.add_argument("--config", type=Path, help="an experiment's YAML: its bundle, or the checkpoint of --ckpt_path")
    parser.add_argument("--ckpt_path", type=Path, help="with --config: a checkpoint instead of the bundle")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--input",
        "--predict_data_root",
        nargs="+",
        default=["data/raw"],
        metavar="SCENE",
        help="a scene, a folder of scenes, a VRT, a STAC item, or the http(s) address of a COG or an item; several for "
        "the dates of a place",
    )
    what.add_argument("--manifest", type=Path, help="a list of scenes instead: .txt, .csv or .json")
    parser.add_argument("--output", type=Path, default=Path("results/predictions"), help="a folder each scene")
    parser.add_argument("--crop", type=int, help="side of a window in pixels; the bundle's chip size where absent")
    parser.add_argument("--overlap", type=int, help="of windows, in pixels; a quarter of the crop where absent")
    parser.add_argument("--batch-size", type=int, default=8, help="windows at a time")
    parser.add_argument("--threshold", type=float, help="of the probability; the bundle's where absent")
    parser.add_argument("--tta", action="store_true", help="average over the eight rotations and flips")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--runtime",
        default="auto",
        help="torch, torch-bf16, onnx, openvino, openvino-bf16, openvino-int8, "
        "openvino-int8-bf16; where absent, on a CPU the fastest that `terraseg export` found within parity",
    )
    parser.add_argument("--logits", action="store_true", help="write the log-odds, too")
    parser.add_argument("--uncertainty", action="store_true", help="write the entropy of the probability, too")
    parser.add_argument("--simplify", type=float, help="tolerance of the polygons in metres; half a pixel where absent")
    parser.add_argument("--min-area", type=float, default=0.0, help="least area of a polygon in square metres")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes on this machine; one for each GPU where absent")
    where.add_argument("--scheduler", help="address of a running Dask scheduler instead, tcp://HOST:PORT")
    parser.add_argument("--retries", type=int, default=2, help="of a scene that fails, after all others")
    parser.add_argument(
        "--mosaic", choices=("date", "confidence"), help="one map of all scenes, too: the latest pixel or the surest"
    )


def _export(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Export a bundle's model for other runtimes; measure on real chips how true and how fast each is."""
        from rich.console import Console

        from terraseg.mapping.runtimes.export import export, parity_table

        record = export(
            bundle=options.bundle,
            input=options.input,
            chips=options.chips,
            batch_size=options.batch_size,
        )
        Console().print(parity_table(record))

    parser = _verb(verbs, "export", run, "a model for faster runtimes")
    parser.add_argument("--bundle", type=Path, required=True, help="outputs/<experiment>/bundle")
    parser.add_argument("--input", nargs="+", default=["data/raw"], metavar="SCENE", help="as for predict")
    parser.add_argument(
        "--chips", type=int, default=64, help="of the scenes: half to compare on, half to calibrate int8"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="chips at a time")


def _evaluate(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Score predicted scenes on held-out ground: IoU, F1 and more, each with its 95 % interval."""
        from rich.console import Console

        from terraseg.api.assess import score, score_bundle, score_index_baseline
        from terraseg.report.tables import tables

        names = ("ground_truth", "output", "split", "boundary_tolerance", "seed")
        given = {name: getattr(options, name) for name in names}
        of_model = {name: getattr(options, name) for name in ("footprints", "by", "choose_threshold", "experiment")}
        alone = "--index-baseline" if options.index_baseline else "--bundle" if options.bundle else None
        if alone is None:
            how = {**given, **of_model, "by_field": options.by_field}
            files = score(predictions=options.predictions, **how)
        elif wrong := [f"--{name.replace('_', '-')}" for name, value in of_model.items() if value]:
            raise ConfigError(f"{alone} doesn't go with {', '.join(wrong)}", fix="leave one of them away")
        else:
            files = [score_bundle(bundle=options.bundle, **given) if options.bundle else score_index_baseline(**given)]
        console = Console()
        for table in tables(files, places=bool(options.by or options.footprints)):
            console.print(table)

    parser = _verb(verbs, "evaluate", run, "score predictions on held-out ground")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--predictions", type=Path, default=Path("results/predictions"), help="folder of products")
    what.add_argument(
        "--index-baseline", action="store_true", help="score the best single-index threshold, tuned on train, instead"
    )
    what.add_argument("--bundle", type=Path, help="score a model on the dataset's chips instead of on maps of scenes")
    parser.add_argument("--ground-truth", type=Path, default=Path("data/processed"), help="dataset, mask or polygons")
    parser.add_argument("--output", type=Path, default=Path("results/metrics"), help="folder of the results")
    parser.add_argument("--experiment", help="only this one; each that predicted where absent")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="of a dataset")
    parser.add_argument("--footprints", type=Path, help="with a dataset: its footprints, for object figures")
    parser.add_argument("--by", type=Path, help="polygons of places, such as cities; a block each where absent")
    parser.add_argument("--by-field", default="name", help="the attribute of --by that names a place")
    parser.add_argument(
        "--choose-threshold", action="store_true", help="the best one on the val split instead of the bundle's"
    )
    parser.add_argument("--boundary-tolerance", type=float, default=20.0, help="of outlines, in metres")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def _compare(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Train, predict and score experiments x label fractions x seeds; run again, it goes on where it was."""
        from rich.console import Console

        from terraseg.api.compare import compare
        from terraseg.report.comparison_tables import (
            answers,
            by_fraction_table,
            efficiency_table,
            performance_table,
            which_model,
        )

        tables = compare(options.comparison, cells=options.cells, output=options.output, overrides=options.set)
        console = Console()
        for table in (performance_table, efficiency_table, by_fraction_table):
            console.print(table(tables))
        for line in (*answers(tables), "", *which_model(tables)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    parser = _verb(verbs, "compare", run, "experiments over label fractions and seeds")
    default = Path("configs/compare_demo.yaml")
    parser.add_argument(
        "comparison", type=Path, nargs="?", metavar="CONFIG", default=default, help="docs/comparison.md"
    )
    parser.add_argument(
        "--cells", type=Path, default=Path("outputs/compare"), help="folder of the cells, may be shared"
    )
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of comparison.csv")
    parser.add_argument(
        "--set", action="append", default=[], metavar="[EXPERIMENT:]KEY=VALUE", help="change experiments' configs"
    )


def _visualize(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Draw the figures and write report.html from the results."""
        from terraseg.api.assess import visualize

        visualize(
            results=options.results,
            ground_truth=options.ground_truth,
            scenes=options.scenes,
            output=options.output,
            report=options.report,
            trainings=options.trainings,
            comparison=options.comparison,
        )

    parser = _verb(verbs, "visualize", run, "figures and report")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of predictions/ and metrics/")
    parser.add_argument("--ground-truth", type=Path, default=Path("data/processed"), help="the dataset")
    parser.add_argument("--scenes", type=Path, default=Path("data/raw"), help="the scenes that were predicted")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="folder of the figures")
    parser.add_argument("--report", type=Path, default=Path("results/report.html"), help="the report, one file")
    parser.add_argument("--trainings", type=Path, default=Path("outputs"), help="for the curves of the experiments")
    parser.add_argument(
        "--comparison", type=Path, help="comparison.csv; that of --results or the folder above, if any, where absent"
    )


def _models(verbs: _Verbs) -> None:
    def run(_: argparse.Namespace) -> None:
        """List the backbones: bands, size, licence, weights, paper. Those marked * may not be used commercially."""
        from rich.console import Console

        from terraseg.learn.models.specs import models_table

        Console().print(models_table())

    _verb(verbs, "models", run, "the backbones and their licences")


def _serve(verbs: _Verbs) -> None:
    def run(options: argparse.Namespace) -> None:
        """Fine-tune for others: upload labelled GeoTIFFs, train, get metrics, bundle and maps, over HTTP."""
        from terraseg.serve.start import serve

        serve(
            root=options.root,
            host=options.host,
            port=options.port,
            token_file=options.token_file,
            recipes=options.recipes,
            weights=options.weights,
            max_upload_gb=options.max_upload_gb,
        )

    parser = _verb(verbs, "serve", run, "the fine-tuning service")
    parser.add_argument("--root", type=Path, required=True, help="folder of the datasets and jobs")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; others than this need a token")
    parser.add_argument("--port", type=int, default=8765, help="to listen at")
    parser.add_argument("--token-file", type=Path, help="its one line is the token that requests must carry")
    parser.add_argument("--recipes", type=Path, default=Path("configs"), help="folder of the configs to train with")
    parser.add_argument("--weights", type=Path, default=Path("data/weights"), help="weights that a job may name")
    parser.add_argument("--max-upload-gb", type=float, default=20.0, help="of one upload")


def _demo(verbs: _Verbs) -> None:
    def run(_: argparse.Namespace) -> None:
        """Run every step on the demo's real scene; run again, it goes on where it was."""
        from terraseg.sample.demo import run_demo

        run_demo(Path.cwd())

    _verb(verbs, "demo", run, "every step on a real scene")


def _start_logging(*, verbose: bool) -> None:
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("terraseg").setLevel(logging.INFO)
    if verbose:
        logging.getLogger().setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
