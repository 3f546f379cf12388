"""The process that does one job: `python -m terraseg.serve.jobs.job_process FOLDER`.

It reads request.json, and writes its status to stage.json and its result to result.json. After a crash, the exit code
and log.txt show what happened. A stopped training resumes from its last checkpoint, if its folder is still there.
"""

import json
import logging
import os
import shutil
import signal
import sys
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import terraseg
from terraseg.core.files import unpack_tar, write_json
from terraseg.errors import ConfigError, cause_of
from terraseg.serve.http_errors import Fault
from terraseg.serve.jobs.folder import images_of, tidy
from terraseg.serve.jobs.recipes import SOURCES, ignored_values
from terraseg.serve.schema import Facts, InferenceMetadata, TrainingMetadata
from terraseg.serve.store import Store

_log = logging.getLogger("terraseg.serve.jobs.job_process")  # not __main__, which this module is

BUNDLE, RESULTS = "bundle.tar.gz", "results.tar.gz"
"""Names of the results in the store, below ``jobs/<id>/``."""

Request = dict[str, Any]


def main(folder: Path) -> None:
    """Do the work of a folder; a `TerrasegError` becomes its result."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stdout, force=True)
    logging.getLogger("terraseg").setLevel(logging.INFO)
    threading.Thread(target=_die_with_the_worker, daemon=True).start()
    os.chdir(folder)  # paths in a config are relative to it
    request: Request = json.loads(Path("request.json").read_text(encoding="utf-8"))
    try:
        outcome = {"error": None, **_WORK[request["kind"]](request, Store(request["store"]))}
    except Exception as error:
        mendable = cause_of(error)
        if mendable is None:
            raise
        _log.error("%s", mendable)
        outcome = {"error": Fault.of(mendable).json()}
    write_json("result.json", outcome)


def _die_with_the_worker() -> None:
    """The worker holds the other end of standard input; the kernel closes it when the worker ends in any way."""
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _say(status: str) -> None:
    _log.info("--- %s", status)
    write_json("stage.json", {"status": status})


def _fetched(request: Request, store: Store) -> dict[str, Path]:
    """The files of the dataset by their paths in it."""
    _say("DOWNLOADING_DATA")
    files = {name: Path("data") / name for name in request["files"]}
    for name, key in request["files"].items():
        store.fetch(key, files[name])
    return files


def _saved(folder: Path, request: Request, store: Store, name: str) -> int:
    """Store a folder as an archive; returns its bytes."""
    archive = Path(name)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=request["id"])
    size = archive.stat().st_size
    store.put(archive, f"jobs/{request['id']}/{name}")
    return size


# --- fine-tuning ---


def _fine_tune(request: Request, store: Store) -> dict[str, Any]:
    _say("SETTING_UP")
    metadata = TrainingMetadata.model_validate(request["metadata"])
    facts, ignored = Facts.model_validate(request["facts"]), ignored_values(metadata)
    config = dict(request["config"])
    weights = config["model"]["init_args"]
    if weights["weights"] not in SOURCES:
        weights["weights"] = str(Path(request["weights_folder"]) / weights["weights"])
    Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    outputs = Path(config["trainer"]["default_root_dir"])
    bundle = outputs / "bundle"
    if not (bundle / "bundle.json").is_file():  # the last file that a training writes
        files = _fetched(request, store)
        _import(files, facts, metadata, ignored)
        _say("FINE_TUNING")
        _check(Path("config.yaml"))
        _fit(Path("config.yaml"), outputs / "checkpoints" / "last.ckpt")
    else:
        files = {name: Path("data") / name for name in request["files"]}
    opened = terraseg.open_bundle(bundle)
    scores = _mapped(opened, files, facts, "test", ignored, InferenceMetadata(batch_size=metadata.batch_size or 8))
    _say("SAVING_RESULTS")
    write_json(bundle / "metrics.json", {"test": scores})
    _write_card(bundle, opened, request, {"test": scores})
    info, unit = opened.info, 1e-4 if facts.unit == "reflectance" else 1.0
    statistics = {"means": [mean * unit for mean in info.means], "stds": [std * unit for std in info.stds]}
    result = {
        "metrics": {"test": scores},
        "weights": info.weights,
        "threshold": info.threshold,
        "licence": info.licence,
        "warnings": _read("warnings.json"),
        "metadata": {"img_norm_cfg": statistics},
    }
    return {"result": result, "size": _saved(bundle, request, store, BUNDLE)}


def _import(files: Mapping[str, Path], facts: Facts, metadata: TrainingMetadata, ignored: Sequence[int]) -> None:
    """Make the dataset, if it is not there from an interrupted run."""
    if Path("dataset/dataset.yaml").is_file():
        return
    shutil.rmtree("tidy", ignore_errors=True)
    classes, tile, bands = metadata.CLASSES or (), metadata.tile_size or 0, metadata.bands or ()  # the server sets them
    options = tidy(dict(files), Path("tidy"), facts, classes=classes, tile=tile, ignored=ignored)
    dataset = terraseg.import_folders(images="tidy", output="dataset", options=options)
    norm = metadata.img_norm_cfg
    if norm is not None:
        unit = 1e4 if facts.unit == "reflectance" else 1.0
        stats = dataset.stats.model_dump()
        for name, mean, std in zip(bands, norm.means, norm.stds, strict=True):
            stats["bands"][name] |= {"mean": mean * unit, "std": std * unit}
        write_json("dataset/stats.json", stats)


def _check(config: Path) -> None:
    """Run `terraseg check`: errors end the job, warnings are kept for its answer."""
    _raise_errors(terraseg.check(config, model=False))  # takes a second, without the import of TerraTorch
    findings = terraseg.check(config)
    for finding in findings:
        _log.log(logging.ERROR if finding.severity == "error" else logging.WARNING, "%s", finding)
    _raise_errors(findings)
    write_json("warnings.json", [str(finding) for finding in findings])


def _raise_errors(findings: "Sequence[terraseg.Finding]") -> None:
    if errors := [finding for finding in findings if finding.severity == "error"]:
        first, others = errors[0], "; ".join(str(error) for error in errors[1:])
        found = f"{first.key}: {first.found}" + (f" (and also: {others})" if others else "")
        raise ConfigError(found, expected=first.expected or None, fix=first.fix or None)


def _fit(config: Path, last: Path) -> None:
    """Run `terratorch fit` in this process, which has already imported TerraTorch for the check."""
    from terratorch.__main__ import main as terratorch

    resumed = ["--ckpt_path", str(last)] if last.is_file() else []
    sys.argv = ["terratorch", "fit", "--config", str(config), *resumed]
    _log.info("$ %s", " ".join(sys.argv))
    terratorch()


# --- inference ---


def _infer(request: Request, store: Store) -> dict[str, Any]:
    _say("SETTING_UP")
    store.fetch(f"jobs/{request['model_id']}/{BUNDLE}", Path(BUNDLE))
    unpack_tar(Path(BUNDLE), Path("bundle"))
    opened = terraseg.open_bundle(Path("bundle") / request["model_id"])
    files = _fetched(request, store)
    metadata, facts = InferenceMetadata.model_validate(request["metadata"]), Facts.model_validate(request["facts"])
    said = {key: value for key in ("bands", "unit", "nodata") if (value := getattr(metadata, key)) is not None}
    facts = facts.model_copy(update=said)
    _say("RUNNING_INFERENCE")
    results = Path("results")
    scores = _mapped(opened, files, facts, request["split"], request["ignored"], metadata, keep=results)
    _say("SAVING_RESULTS")
    if scores is not None:
        write_json(results / "metrics.json", {request["split"]: scores})
    _write_card(results, opened, request, {request["split"]: scores} if scores else {})
    pictures = sorted(Path("previews").glob("*.png"))
    for picture in pictures:
        store.put(picture, f"jobs/{request['id']}/previews/{picture.name}")
    shown = [name for name, _, _ in images_of(files, request["split"])][: len(pictures) // 2]
    result = {"metrics": {request["split"]: scores} if scores else {}, "previews": shown}
    return {"result": result, "size": _saved(results, request, store, RESULTS)}


def _mapped(
    bundle: Any,  # noqa: ANN401  # of the public API
    files: Mapping[str, Path],
    facts: Facts,
    split: str,
    ignored: Sequence[int],
    metadata: InferenceMetadata,
    *,
    keep: Path | None = None,
) -> dict[str, Any] | None:
    """Map the images of a split, and score the maps of those with ground truth; None if there are none."""
    from terraseg.serve.jobs.maps import Mapper
    from terraseg.serve.jobs.preview import MOST, write_previews
    from terraseg.serve.jobs.scores import metrics, score

    mapper, scored, info = Mapper(bundle, threshold=metadata.threshold, batch_size=metadata.batch_size), [], bundle.info
    for number, (name, image, truth) in enumerate(images_of(dict(files), split)):  # type: ignore[arg-type]
        output = (keep or Path("maps")) / f"{name}.tif"
        ids, header = mapper.map(image, output, facts)
        if keep is not None and number < MOST:
            write_previews(image, ids, Path("previews"), number=number, facts=facts)
        if truth is not None:
            here = {"name": name, "classes": len(info.classes), "tile": info.tile_size, "ignored": ignored}
            scored.append(score(ids, truth, header, **here))
    return metrics(scored, info.classes) if scored else None


def _write_card(folder: Path, bundle: Any, request: Request, scores: dict[str, Any]) -> None:  # noqa: ANN401
    from terraseg.serve.jobs.scores import card

    text = card(bundle.info, request.get("model_id") or request["id"], scores)
    (folder / "card.md").write_text(text, encoding="utf-8")


def _read(name: str) -> list[str]:
    values: list[str] = json.loads(Path(name).read_text(encoding="utf-8")) if Path(name).is_file() else []
    return values


_WORK: dict[str, Callable[[Request, Store], dict[str, Any]]] = {"model": _fine_tune, "inference": _infer}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
