"""The SDK: fine-tune on another machine from a script or a notebook.

::

    client = Client("http://127.0.0.1:8765", token=...)
    dataset = client.upload("data/floods", classes=["background", "flood"])
    job = client.finetune(dataset, recipe="baseline_unet", steps=300)
    job.wait(progress=True)

Of terraseg's requirements it needs httpx alone (and rich, for progress): neither torch nor GDAL. Every refusal of the
service is the `terraseg.errors.TerrasegError` that the same fault raises locally. Questions, files sent and downloads
are tried again where the network fails; what must not happen twice is not.
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

_SUFFIXES = (".tif", ".tiff")
_BUNDLE, _PRODUCT = "bundle.json", "item.json"
"""The file that each of these folders has."""

_OVER = ("succeeded", "failed", "cancelled")


class Client:
    """A service.

    Args:
        url: its address.
        token: what it was started with; None where it has none.
        timeout: seconds without an answer, or without progress of a transfer.
        retries: of what may happen twice, after 0.5 s, 1 s, 2 s and so on: six bridge a restart of the service.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 60.0, retries: int = 6) -> None:
        self._transport = Transport(url, token=token, timeout=timeout, retries=retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._transport.close()

    def about(self) -> dict[str, Any]:
        """Version and limits of the service."""
        about: dict[str, Any] = self._transport.get("/")
        return about

    def recipes(self) -> list[dict[str, Any]]:
        """What it can train: name, about, backbone, bands, weights and licence of each recipe."""
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
            images: folder of the images. Without ``masks`` it holds the folders ``images`` and ``masks``, or ``train``,
                ``val`` and ``test`` with ``input`` and ``ground_truth`` each, or images and masks side by side, told
                apart by ``image_suffix`` and ``mask_suffix``.
            masks: folder of the masks.
            name: of the dataset; the folder's where absent.
            options: as of `terraseg data import`: ``classes``, ``bands``, ``unit``, ``tile_size``, ``image_suffix``,
                ``mask_suffix``, ``nodata``, ``label_nodata``, ``attribution``, ``block_chips``, ``gap_m``, ``gsd``,
                ``seed``, ``assume_independent``.

        Raises:
            DatasetError: no GeoTIFF there.
            TerrasegError: what the import refuses; nothing of the upload is kept.
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
        """All of them."""
        return [Dataset(self._transport, answer) for answer in self._transport.get("/datasets")]

    def dataset(self, name: str) -> "Dataset":
        """The dataset of an id."""
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
        """Queue a training. It is checked before it begins: what it would get wrong is the job's error.

        Args:
            dataset: to train on, or its id.
            recipe: name of one of `recipes`.
            steps: of the optimizer; without steps and epochs the recipe's own length.
            epochs: instead of steps.
            seed: of the training, and of the labelled chips.
            fraction: share of the ground of train that is learned from.
            batch_size: chips of a step; the recipe's where absent.
            bands: in the order of the model's channels; the recipe's where absent.
            positive: class that threshold, metrics and maps are about; class 1 where absent.
            weights: ``hub``, ``random``, or a file in the service's folder of weights; the recipe's where absent.
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
        """All of them, the oldest first."""
        return [Job(self._transport, answer) for answer in self._transport.get("/jobs")]

    def job(self, name: str) -> "Job":
        """The job of an id."""
        return Job(self._transport, self._transport.get(f"/jobs/{quote(name, safe='')}"))


class _Thing:
    """Something of the service; ``answer`` is what the service last said of it."""

    def __init__(self, transport: Transport, answer: dict[str, Any]) -> None:
        self._transport, self.answer = transport, answer

    @property
    def id(self) -> str:
        """Its name on the service."""
        return str(self.answer["id"])


class Dataset(_Thing):
    """A dataset of the service; ``answer`` has bands, classes, chips of each split, content hash and so on."""

    def __repr__(self) -> str:
        chips = ", ".join(f"{count} {split}" for split, count in self.answer["chips"].items())
        return f"<Dataset {self.id}: {', '.join(self.answer['classes'])}; chips: {chips}>"

    def delete(self) -> None:
        """Remove it from the service."""
        self._transport.delete(f"/datasets/{self.id}")


class Job(_Thing):
    """A job of the service; ``answer`` has request, state, stage, progress, weights, warnings, metrics, error."""

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.state}, weights: {self.weights}>"

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``, when it was last asked."""
        return str(self.answer["state"])

    @property
    def weights(self) -> str:
        """Where the training starts from; once it has ended, where it did start from."""
        return str(self.answer["weights"])

    @property
    def pretrained(self) -> bool:
        """Whether these are other weights than random ones."""
        return bool(self.answer["pretrained"])

    @property
    def error(self) -> TerrasegError | None:
        """Why it failed."""
        fault = Fault.parse(self.answer)
        return None if fault is None else fault.error()

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures on the test split, each with its 95 % interval, and all that they depend on.

        Raises:
            WrongStateError: there are none.
        """
        if "test" not in self.answer["metrics"]:
            raise WrongStateError(f"job {self.id} is {self.state}", expected="succeeded", fix="wait for it")
        metrics: dict[str, Any] = self.answer["metrics"]["test"]
        return metrics

    def refresh(self) -> Self:
        """Ask the service again."""
        self.answer = self._transport.get(f"/jobs/{self.id}")
        return self

    def wait(self, *, progress: bool = False, every: float = 2.0, timeout: float | None = None) -> Self:
        """Wait for its end.

        Args:
            progress: show stages, steps, losses and scores.
            every: seconds between questions.
            timeout: seconds; None: as long as it takes.

        Raises:
            TerrasegError: why it failed.
            WrongStateError: it was cancelled, or is not over in time.
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
        """All that its process said."""
        return self._transport.text(f"/jobs/{self.id}/log")

    def full_metrics(self, split: str = "test") -> dict[str, Any]:
        """The whole result on val or test, as docs/assessment.md describes it."""
        metrics: dict[str, Any] = self._transport.get(f"/jobs/{self.id}/metrics/{split}")
        return metrics

    def download_bundle(self, folder: str | Path) -> Path:
        """Get the trained model: a folder that `terraseg predict --bundle` takes.

        Raises:
            WrongStateError: the job has not succeeded.
            OutputError: the folder holds something else.
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
        """Map an image with this training's model: queued as any job, waited for, fetched, and removed there.

        Args:
            image: a scene with its STAC item beside it, as `terraseg data download` writes it, or any GeoTIFF like
                those that were uploaded, with its date.
            output: gets a folder of the image's name: probability and mask as COG, polygons, STAC item.
            date: when the image was taken, YYYY-MM-DD.
            attribution: credit that the map will carry.
            bands: names in file order, where neither the image nor those of the upload had them.
            unit: likewise.
            nodata: likewise.
            threshold: of the probability; the one that was chosen on val where absent.
            progress: show stages.
            every: seconds between questions.

        Returns:
            The folder.

        Raises:
            WrongStateError: the training has not succeeded.
            OutputError: the folder holds something else.
            TerrasegError: why it can't be mapped.
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
        """Stop it; what it has made up to now is kept until it is deleted.

        Raises:
            WrongStateError: it is over.
        """
        self.answer = self._transport.post(f"/jobs/{self.id}/cancel")

    def delete(self) -> None:
        """Remove it and all that it made from the service.

        Raises:
            WrongStateError: it is not over.
        """
        self._transport.delete(f"/jobs/{self.id}")


def _files(images: Path, masks: Path | None) -> tuple[dict[str, Path], dict[str, str | None]]:
    """The files to send by their path there, and which folders these are."""
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
        if path.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if not found:
        raise DatasetError(f"no GeoTIFF in {folder}", expected=" or ".join(_SUFFIXES), fix="correct the folder")
    return found


def _item(path: Path) -> Any:  # noqa: ANN401  # JSON, which the service checks
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SceneError(f"{path} is no JSON ({error})", expected="the STAC item of the image beside it") from error


def _give_up(transport: Transport, upload: str) -> None:
    """Remove an upload that will not be used; one that the service doesn't know any more is gone already."""
    with suppress(UnreachableError, NotThereError):  # unreachable: it is forgotten when the service starts again
        transport.delete(upload)


def _slug(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_")[:40] or "dataset"


def _shown() -> Callable[[dict[str, Any]], None]:
    """How answers become lines on the screen, each once."""
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
