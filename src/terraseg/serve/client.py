"""The SDK: fine-tune on another machine, from a script or a notebook.

::

    client = Client("http://127.0.0.1:8765", token=...)
    dataset = client.upload("data/floods", classes=["background", "flood"])
    job = client.finetune(dataset, recipe="baseline_unet", steps=300)
    job.wait(progress=True)

It needs httpx (and rich, for progress), but neither torch nor GDAL. Errors of the service are raised as the same
`terraseg.errors.TerrasegError` as in a local run. If the network fails, queries, uploads and downloads are tried again;
requests that must not happen twice are not.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from terraseg.errors import DatasetError, SceneError, TerrasegError
from terraseg.serve.http_client import Transport, UnreachableError, refuse_other_files
from terraseg.serve.http_errors import Fault, NotThereError, WrongStateError

_SUFFIXES = (".tif", ".tiff", ".tif.msk", ".tiff.msk")  # GDAL's masks lie in files of their own
_BUNDLE, _PRODUCT = "bundle.json", "item.json"
"""A file that is in each of these folders."""

_OVER = ("succeeded", "failed", "cancelled")


class Client:
    """A connection to a service.

    Args:
        url: address of the service.
        token: token of the service, if it has one.
        timeout: longest wait in seconds for an answer, or for progress of a transfer.
        retries: number of retries, after 0.5 s, 1 s, 2 s and so on; six are enough for a restart of the service.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 60.0, retries: int = 6) -> None:
        self._transport = Transport(url, token=token, timeout=timeout, retries=retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def about(self) -> dict[str, Any]:
        """Version and limits of the service."""
        about: dict[str, Any] = self._transport.get("/")
        return about

    def recipes(self) -> list[dict[str, Any]]:
        """The recipes: name, about, backbone, bands, weights and licence of each."""
        recipes: list[dict[str, Any]] = self._transport.get("/recipes")
        return recipes

    def upload(
        self,
        images: str | Path,
        masks: str | Path | None = None,
        *,
        name: str | None = None,
        **options: Any,  # noqa: ANN401  # the service checks them
    ) -> "Dataset":
        """Make a dataset of labelled GeoTIFFs on the service.

        Args:
            images: folder of the images. Without ``masks`` it has the folders ``images`` and ``masks``; or ``train``,
                ``val`` and ``test``, each with ``input`` and ``ground_truth``; or images and masks with different
                ``image_suffix`` and ``mask_suffix``.
            masks: folder of the masks.
            name: name of the dataset, by default that of the folder.
            options: as for `terraseg data import`: ``classes``, ``bands``, ``unit``, ``tile_size``, ``image_suffix``,
                ``mask_suffix``, ``nodata``, ``label_nodata``, ``class_values``, ``attribution``, ``block_chips``,
                ``gap_m``, ``gsd``, ``seed``, ``assume_independent``.

        Raises:
            DatasetError: the folder has no GeoTIFF.
            TerrasegError: the import failed; nothing of the upload is kept.
        """
        files, layout = _files(Path(images), None if masks is None else Path(masks))
        asked = {
            "name": name or _slug(Path(images)),
            "size": sum(path.stat().st_size for path in files.values()),
            "options": options,
            **layout,
        }
        address = f"/uploads/{self._transport.post('/uploads', asked)['id']}"
        try:
            for there, path in files.items():
                self._transport.send(f"{address}/files/{quote(there)}", path)
        except BaseException:
            _give_up(self._transport, address)
            raise
        return Dataset(self._transport, self._transport.post(f"{address}/import", patient=True))

    def datasets(self) -> list["Dataset"]:
        """All datasets."""
        return [Dataset(self._transport, answer) for answer in self._transport.get("/datasets")]

    def dataset(self, name: str) -> "Dataset":
        """The dataset with an id."""
        return Dataset(self._transport, self._transport.get(f"/datasets/{quote(name, safe='')}"))

    def finetune(
        self,
        dataset: "Dataset | str",
        *,
        recipe: str,
        steps: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        fraction: float = 1.0,
        batch_size: int | None = None,
        bands: Sequence[str] | None = None,
        positive: str | None = None,
        weights: str | None = None,
    ) -> "Job":
        """Queue a training. The job first checks its config and data, and fails if it finds an error.

        Args:
            dataset: to train on, or its id.
            recipe: name of one of `recipes`.
            steps: optimizer steps. Without steps and epochs, the length that the recipe sets.
            epochs: instead of steps.
            seed: for the training, and for the choice of chips.
            fraction: share of the train area to learn from.
            batch_size: chips per step, by default that of the recipe.
            bands: in the order of the model's channels, by default those of the recipe.
            positive: class for threshold, metrics and maps, by default class 1.
            weights: ``hub``, ``random``, or a file in the service's weights folder, by default those of the recipe.
        """
        asked = {
            "dataset": dataset if isinstance(dataset, str) else dataset.id,
            "recipe": recipe,
            "steps": steps,
            "epochs": epochs,
            "seed": seed,
            "fraction": fraction,
            "batch_size": batch_size,
            "bands": None if bands is None else list(bands),
            "positive": positive,
            "weights": weights,
        }
        return Job(self._transport, self._transport.post("/jobs", asked))

    def jobs(self) -> list["Job"]:
        """All jobs, the oldest first."""
        return [Job(self._transport, answer) for answer in self._transport.get("/jobs")]

    def job(self, name: str) -> "Job":
        """The job with an id."""
        return Job(self._transport, self._transport.get(f"/jobs/{quote(name, safe='')}"))


class _Thing:
    """A dataset or job of the service; ``answer`` is its latest description."""

    def __init__(self, transport: Transport, answer: dict[str, Any]) -> None:
        self._transport, self.answer = transport, answer

    @property
    def id(self) -> str:
        """Its id on the service."""
        return str(self.answer["id"])


class Dataset(_Thing):
    """A dataset of the service; ``answer`` has bands, classes, chips of each split, content hash and so on."""

    def __repr__(self) -> str:
        chips = ", ".join(f"{count} {split}" for split, count in self.answer["chips"].items())
        return f"<Dataset {self.id}: {', '.join(self.answer['classes'])}; chips: {chips}>"

    def delete(self) -> None:
        """Delete it from the service."""
        self._transport.delete(f"/datasets/{self.id}")


class Job(_Thing):
    """A job of the service; ``answer`` has request, state, stage, progress, weights, warnings, metrics, error."""

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.state}, weights: {self.weights}>"

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``, at the last `refresh`."""
        return str(self.answer["state"])

    @property
    def weights(self) -> str:
        """The weights that the training starts from."""
        return str(self.answer["weights"])

    @property
    def pretrained(self) -> bool:
        """Whether the weights are not random."""
        return bool(self.answer["pretrained"])

    @property
    def error(self) -> TerrasegError | None:
        """The error, if the job failed."""
        fault = Fault.parse(self.answer)
        return None if fault is None else fault.error()

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics on the test split, each with its 95 % interval, and the settings behind them.

        Raises:
            WrongStateError: there are no metrics.
        """
        if "test" not in self.answer["metrics"]:
            raise WrongStateError(f"job {self.id} is {self.state}", expected="succeeded", fix="wait for it")
        metrics: dict[str, Any] = self.answer["metrics"]["test"]
        return metrics

    def refresh(self) -> Self:
        """Get the present state from the service."""
        self.answer = self._transport.get(f"/jobs/{self.id}")
        return self

    def wait(self, *, progress: bool = False, every: float = 2.0, timeout: float | None = None) -> Self:
        """Wait until the job ends.

        Args:
            progress: show stages, steps, losses and scores.
            every: seconds between queries.
            timeout: longest wait in seconds; None: no limit.

        Raises:
            TerrasegError: the job failed.
            WrongStateError: the job was cancelled, or did not end in time.
        """
        show = _shown() if progress else None
        start = time.monotonic()
        while self.refresh().state not in _OVER:
            if show:
                show(self.answer)
            if timeout is not None and time.monotonic() - start > timeout:
                raise WrongStateError(f"job {self.id} is {self.state} after {timeout:g} s", fix="wait longer")
            time.sleep(every)
        if show:
            show(self.answer)
        if (error := self.error) is not None:
            raise error
        if self.state == "cancelled":
            raise WrongStateError(f"job {self.id} was cancelled")
        return self

    def log(self) -> str:
        """The log of its process."""
        return self._transport.text(f"/jobs/{self.id}/log")

    def full_metrics(self, split: str = "test") -> dict[str, Any]:
        """The full result on val or test, see docs/assessment.md."""
        metrics: dict[str, Any] = self._transport.get(f"/jobs/{self.id}/metrics/{split}")
        return metrics

    def download_bundle(self, folder: str | Path) -> Path:
        """Download the trained model: a folder for `terraseg predict --bundle`.

        Raises:
            WrongStateError: the job has not succeeded.
            OutputError: the folder has other files.
        """
        self._transport.download_folder(f"/jobs/{self.id}/bundle", Path(folder), mark=_BUNDLE)
        return Path(folder)

    def predict(
        self,
        image: str | Path,
        output: str | Path,
        *,
        date: str | None = None,
        attribution: str | None = None,
        bands: Sequence[str] | None = None,
        unit: str | None = None,
        nodata: float | None = None,
        threshold: float | None = None,
        progress: bool = False,
        every: float = 2.0,
    ) -> Path:
        """Map an image with this training's model: queue a job, wait, download the map, and delete the job.

        Args:
            image: a scene with its STAC item, as `terraseg data download` writes it; or any GeoTIFF like the training
                images, with its date.
            output: gets a folder with the image's name: probability and mask as COG, polygons, STAC item.
            date: when the image was taken, YYYY-MM-DD.
            attribution: credit line for the map.
            bands: names in file order, if neither the image nor the training images declare them.
            unit: as for bands.
            nodata: as for bands.
            threshold: probability threshold, by default the one chosen on val.
            progress: show stages.
            every: seconds between queries.

        Returns:
            The folder.

        Raises:
            WrongStateError: the training has not succeeded.
            OutputError: the folder has other files.
            TerrasegError: the image can't be mapped.
        """
        image, beside = Path(image), Path(image).with_suffix(".json")
        if not image.is_file():
            raise SceneError(f"no image at {image}", fix="correct the path")
        folder = Path(output) / image.stem
        refuse_other_files(folder, mark=_PRODUCT)
        item = _item(beside) if beside.is_file() else None
        upload = self._transport.post("/uploads", {"name": "image", "size": image.stat().st_size})["id"]
        asked = {
            "kind": "predict",
            "job": self.id,
            "upload": upload,
            "item": item,
            "date": date,
            "bands": None if bands is None else list(bands),
            "unit": unit,
            "nodata": nodata,
            "threshold": threshold,
            **({} if attribution is None else {"attribution": attribution}),
        }
        try:
            self._transport.send(f"/uploads/{upload}/files/{quote(image.name)}", image)
            job = Job(self._transport, self._transport.post("/jobs", asked))
        except BaseException:
            _give_up(self._transport, f"/uploads/{upload}")
            raise
        job.wait(progress=progress, every=every)
        self._transport.download_folder(f"/jobs/{job.id}/product", folder, mark=_PRODUCT)
        job.delete()
        return folder

    def cancel(self) -> None:
        """Stop the job; its files are kept until it is deleted.

        Raises:
            WrongStateError: the job has ended.
        """
        self.answer = self._transport.post(f"/jobs/{self.id}/cancel")

    def delete(self) -> None:
        """Delete the job and its files from the service.

        Raises:
            WrongStateError: the job has not ended.
        """
        self._transport.delete(f"/jobs/{self.id}")


def _files(images: Path, masks: Path | None) -> tuple[dict[str, Path], dict[str, str | None]]:
    """Files to send, by their path in the upload, and the folders of images and masks."""
    if masks is None and (images / "images").is_dir() and (images / "masks").is_dir():
        images, masks = images / "images", images / "masks"
    files = {f"images/{there}": path for there, path in _rasters(images).items()}
    if masks is not None:
        files |= {f"masks/{there}": path for there, path in _rasters(masks).items()}
    split = (images / "train").is_dir()
    return files, {"images": "images", "masks": "masks" if masks is not None else None if split else "images"}


def _rasters(folder: Path) -> dict[str, Path]:
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.name.lower().endswith(_SUFFIXES)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if not found:
        raise DatasetError(f"no GeoTIFF in {folder}", expected=".tif or .tiff", fix="correct the folder")
    return found


def _item(path: Path) -> Any:  # noqa: ANN401  # JSON, which the service checks
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SceneError(f"{path} is not JSON ({error})", expected="the STAC item of the image") from error


def _give_up(transport: Transport, upload: str) -> None:
    """Delete an upload that will not be used, if the service still has it."""
    with suppress(UnreachableError, NotThereError):  # the service deletes uploads when it starts again
        transport.delete(upload)


def _slug(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_")[:40] or "dataset"


def _shown() -> Callable[[dict[str, Any]], None]:
    """A function that prints new lines of progress."""
    from rich.console import Console

    console, last = Console(highlight=False, markup=False, soft_wrap=True), [""]

    def show(answer: dict[str, Any]) -> None:
        line = _line(answer)
        if line != last[0]:
            console.print(line)
            last[0] = line

    return show


def _line(answer: dict[str, Any]) -> str:
    progress, words = answer["progress"], [answer["stage"] or answer["state"]]
    if "step" in progress:
        of = f" of {progress['steps']}" if progress.get("steps", -1) > 0 else ""
        words.append(f"step {progress['step']}{of}")
        scores = ("train/loss", "val/loss", "val/iou")
        words += [f"{name} {progress[name]:.3f}" for name in scores if progress.get(name) is not None]
    if not answer["pretrained"]:
        words.append("from RANDOM weights")
    return ", ".join(words)
