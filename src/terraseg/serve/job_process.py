"""The process that does one piece of work: `python -m terraseg.serve.job_process FOLDER`.

It reads request.json, and writes its stage to stage.json and its result to result.json. After a crash, the exit code
and log.txt show what happened. A stopped training resumes from its last checkpoint.
"""

import datetime as dt
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

import terraseg
from terraseg.contracts.splits import SPLITS
from terraseg.core.files import output_lock, write_json
from terraseg.errors import BusyError, ConfigError, cause_of
from terraseg.serve.http_errors import Fault
from terraseg.serve.store import read_json, training_folder

_log = logging.getLogger("terraseg.serve.job_process")  # not __main__, which this module is

_PATIENCE = 30.0
"""Seconds until a process notices that its service was killed."""

_BOUNDARY_PIXELS = 2
"""Tolerance for outlines, in pixels."""

Request = dict[str, Any]


def main(folder: Path) -> None:
    """Do the work of a folder; a `TerrasegError` becomes its result."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stdout, force=True)
    logging.getLogger("terraseg").setLevel(logging.INFO)
    threading.Thread(target=_die_with_the_service, daemon=True).start()
    request = read_json(folder / "request.json")
    with ExitStack() as stack:
        _hold(folder, stack)
        result: dict[str, Any] = {"error": None}
        try:
            _WORK[request["kind"]](folder, request)
        except Exception as error:
            mendable = cause_of(error)
            if mendable is None:
                raise
            _log.error("%s", mendable)
            result = {"error": Fault.of(mendable).json()}
        write_json(folder / "result.json", result)


def _die_with_the_service() -> None:
    """The service holds the other end of standard input; the kernel closes it when the service ends in any way."""
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _hold(folder: Path, stack: ExitStack) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            stack.enter_context(output_lock(folder))
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _stage(folder: Path, name: str) -> None:
    _log.info("--- %s", name)
    write_json(folder / "stage.json", {"stage": name})


# --- an upload becomes a dataset ---


def _import(folder: Path, request: Request) -> None:
    _stage(folder, "importing")
    files, output = folder / "files", Path(request["output"])
    masks = request["masks"]
    terraseg.import_folders(
        images=files / request["images"],
        masks=None if masks is None else files / masks,
        output=output,
        options=terraseg.FolderOptions.checked(request["options"]),
    )
    write_json(output / "import.json", request["options"])
    # Chips may be links to the uploaded files; symbolic links, on disks without hard links, still need these files.
    if not any(path.is_symlink() for path in output.rglob("*.tif")):
        shutil.rmtree(files)


# --- a training ---


def _train(folder: Path, request: Request) -> None:
    config = folder / "config.yaml"
    values: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    outputs = Path(values["trainer"]["default_root_dir"])
    dataset = terraseg.open_dataset(values["data"]["init_args"]["root"])
    if not (outputs / "bundle" / "bundle.json").is_file():  # the last file that a training writes
        _stage(folder, "checking")
        _check(folder, config)
        _stage(folder, "training")
        _fit(config, outputs / "checkpoints" / "last.ckpt")
    _stage(folder, "scoring")
    for split in SPLITS[1:]:
        terraseg.evaluate(
            bundle=outputs / "bundle",
            ground_truth=dataset.root,
            output=folder / "metrics" / f"{split}.json",
            split=split,
            boundary_tolerance=_BOUNDARY_PIXELS * dataset.info.gsd,
            seed=request["seed"],
        )


def _check(folder: Path, config: Path) -> None:
    """Run `terraseg check`: errors end the job, warnings are kept for its answer."""
    _refuse(terraseg.check(config, model=False))  # takes a second, without the import of TerraTorch
    findings = terraseg.check(config)
    for finding in findings:
        _log.log(logging.ERROR if finding.severity == "error" else logging.WARNING, "%s", finding)
    _refuse(findings)
    write_json(folder / "warnings.json", {"warnings": [str(finding) for finding in findings]})


def _refuse(findings: "Sequence[terraseg.Finding]") -> None:
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


# --- a map of an image ---


def _predict(folder: Path, request: Request) -> None:
    from terraseg.serve.image_to_scene import scene_of

    _stage(folder, "reading")
    bundle = terraseg.open_bundle(training_folder(folder.parent / request["job"]) / "bundle")
    scene = folder / "input" / request["image"]
    if request["item"] is not None:
        write_json(scene.with_suffix(".json"), request["item"])
    else:
        said = {key: request[key] for key in ("bands", "unit", "nodata")}
        scene = scene_of(
            scene,
            folder / "scene",
            said=said,
            assumed={key: request["assumed"].get(key) for key in said},
            day=dt.date.fromisoformat(request["date"]),
            attribution=request["attribution"],
            gsd=bundle.info.gsd,
        )
    _stage(folder, "mapping")
    terraseg.predict(bundle=bundle.root, input=scene, output=folder / "outputs", threshold=request["threshold"])


_WORK: dict[str, Callable[[Path, Request], None]] = {"import": _import, "train": _train, "predict": _predict}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
