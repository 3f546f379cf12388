"""The SDK: fine-tune on another machine, from a script or a notebook.

::

    client = Client(api_key="ts_...", base_url="https://gpu-box.example.org")
    dataset = client.create_dataset(base_dir="data/floods", name="floods")
    model = client.fine_tune(base_model="prithvi_upernet", dataset_id=dataset.id, metadata={"epochs": 50})
    model.wait(progress=True)
    inference = client.start_inference(model_id=model.id, dataset_id=dataset.id).wait()
    client.download_inference_results(inference_id=inference.id, local_dir="results")

Only `Client.create_dataset` and the mapping of own files read images, and need GDAL; the rest needs httpx alone (and
rich, for progress). Errors of the service are raised as the same `terraseg.errors.TerrasegError` as in a local run. If
the network fails, queries, uploads and downloads are tried again; requests that must not happen twice are not.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from terraseg.errors import ConfigError, SceneError, TerrasegError
from terraseg.serve.http_client import LOADING, Transport, UnreachableError
from terraseg.serve.http_errors import Fault, LimitError, NotThereError, WrongStateError

OVER = ("COMPLETED", "FAILED", "CANCELLED", "NOT_FOUND")
"""Statuses that don't change any more."""

Metadata = Mapping[str, Any] | str | None
"""A mapping, or JSON."""

_Kind = Literal["model", "inference"]


class _Thing:
    """Something of the service; ``answer`` is its latest description."""

    def __init__(self, client: "Client", answer: dict[str, Any]) -> None:
        self._client, self.answer = client, answer

    @property
    def id(self) -> str:
        """Its id on the service."""
        return str(self.answer["id"])

    @property
    def created(self) -> float:
        """When it was made, in seconds since 1970."""
        return float(self.answer["created"])

    @property
    def status(self) -> str:
        """See docs/service.md; as of the last answer."""
        return str(self.answer["status"])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}: {self.status}>"


class Dataset(_Thing):
    """A dataset of the service: ``facts`` is what is known of its images, and what was assumed."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.answer["name"])

    @property
    def facts(self) -> dict[str, Any]:
        """Images by split, bands, unit, nodata, pixel size, CRS, sizes, label values, and sentences ``assumed``."""
        return dict(self.answer["facts"])


class _Job(_Thing):
    """A model or an inference of the service."""

    _kind: _Kind

    @property
    def metadata(self) -> dict[str, Any]:
        """The whole metadata, with all defaults."""
        return dict(self.answer["metadata"])

    @property
    def progress(self) -> dict[str, Any]:
        """Epoch, step, losses and scores of the last validation."""
        return dict(self.answer["progress"])

    @property
    def error(self) -> TerrasegError | None:
        """Why it FAILED."""
        fault = Fault.parse(self.answer)
        return None if fault is None else fault.error()

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics by split: IoU of each class, mean IoU and mean accuracy, each with its 95 % interval."""
        return dict(self.answer["result"].get("metrics", {}))

    def refresh(self) -> Self:
        """Get the present state from the service."""
        self.answer = self._client._answer(self._kind, self.id)
        return self

    def wait(self, *, progress: bool = False, every: float = 2.0, timeout: float | None = None) -> Self:
        """Wait until it ends.

        Args:
            progress: show statuses, steps, losses and scores.
            every: seconds between queries.
            timeout: longest wait in seconds; None: no limit.

        Raises:
            TerrasegError: why it FAILED.
            WrongStateError: it was cancelled, or did not end in time.
            NotThereError: there is none with this id.
        """
        show = _shown() if progress else None
        start = time.monotonic()
        while self.refresh().status not in OVER:
            if show:
                show(self.answer)
            if timeout is not None and time.monotonic() - start > timeout:
                raise WrongStateError(f"{self.id} is {self.status} after {timeout:g} s", fix="wait longer")
            time.sleep(every)
        if show:
            show(self.answer)
        if (error := self.error) is not None:
            raise error
        if self.status == "NOT_FOUND":
            raise NotThereError(f"no {self._kind} {self.id!r}")
        if self.status == "CANCELLED":
            raise WrongStateError(f"{self.id} was cancelled")
        return self

    def cancel(self) -> Self:
        """Stop it.

        Raises:
            WrongStateError: it has ended.
        """
        self.answer = self._client._transport.post(f"{_path(self._kind, self.id)}/cancel")
        return self

    def log(self) -> str:
        """The log of its process, when it has ended."""
        return self._client._transport.text(f"{_path(self._kind, self.id)}/log")


class Model(_Job):
    """A model of the service; ``metadata`` and ``config`` say how it is trained."""

    _kind = "model"

    @property
    def config(self) -> dict[str, Any]:
        """The config of the training, as for `terratorch fit`."""
        return dict(self.answer["config"])

    @property
    def weights(self) -> str:
        """The weights that the training starts from."""
        return str(self.answer["result"].get("weights", self.metadata["weights"]))


class Inference(_Job):
    """Maps of the images of one split, and how good they are."""

    _kind = "inference"


class Client:
    """A connection to a service.

    Args:
        api_key: key of the user; a service on one's own machine may have none.
        base_url: address of the service.
        timeout: longest wait in seconds for an answer, or for progress of a transfer.
        retries: number of retries, after 0.5 s, 1 s, 2 s and so on; six are enough for a restart of the service.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str = "http://127.0.0.1:8765",
        *,
        timeout: float = 60.0,
        retries: int = 6,
    ) -> None:
        self._transport = Transport(base_url, api_key=api_key, timeout=timeout, retries=retries)
        self._stack = ExitStack()
        self._stack.callback(self._transport.close)

    @classmethod
    def local(
        cls,
        root: str | Path = "service",
        *,
        recipes: str | Path = "configs",
        weights: str | Path = "data/weights",
        slots: int | None = None,
    ) -> Self:
        """The same in this process, without a server of its own: its jobs run on this machine until `close`.

        Args:
            root: folder of its files.
            recipes: folder of the base models.
            weights: folder of the weights files.
            slots: jobs at a time; by default one for each GPU, or one.

        Raises:
            ConfigError: no recipes.
            BusyError: a service works in ``root``.
        """
        from terraseg.serve.assemble import Settings, serving

        stack = ExitStack()
        settings = Settings(Path(root).absolute(), Path(recipes).absolute(), Path(weights), slots=slots)
        client = cls(base_url=stack.enter_context(serving(settings)))
        client._stack.push(stack)
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end a service of `local`."""
        self._stack.close()

    def about(self) -> dict[str, Any]:
        """Version and limits of the service, and the name of the user."""
        return dict(self._transport.get("/about"))

    def list_base_models(self) -> list[dict[str, Any]]:
        """The base models: name, about, backbone, bands, weights and licence of each."""
        return list(self._transport.get("/base_models"))

    # --- datasets ---

    def create_dataset(
        self,
        base_dir: str | Path,
        name: str,
        *,
        bands: Sequence[str] | None = None,
        unit: str | None = None,
        nodata: float | None = None,
        gsd: float | None = None,
        num_frames: int | None = None,
        progress: bool = False,
    ) -> Dataset:
        """Check a folder of labelled GeoTIFFs, and upload what the service does not have yet.

        Args:
            base_dir: folder with ``train``, ``val`` and ``test``, each with ``input`` and ``ground_truth``: an image
                and its ground truth have the same name.
            name: of the dataset.
            bands: names in file order, if the files name none; 13 are taken in Sentinel-2's order, 6 in that of HLS.
                Of several dates those of one.
            unit: ``reflectance`` (0 to 1) or ``reflectance_1e-4`` (DN); by default what the values show.
            nodata: value without an observation; -9999 is one by default.
            gsd: pixel size in metres of images without a CRS; 10 by default.
            num_frames: dates in a file, date by date; by default found from the bands, such as 3 for 18 or 39.
            progress: show how much is sent.

        Raises:
            DatasetError, SceneError, LabelError: what is wrong with the folder; nothing has been sent.
            TooLargeError: the dataset, or all of the user's.
        """
        from terraseg.serve.jobs.folder import check_files, files_of

        files = files_of(Path(base_dir))
        facts = check_files(files, bands=bands, unit=unit, nodata=nodata, gsd=gsd, num_frames=num_frames)
        return self._upload(name, files, facts, progress=progress)

    def _upload(self, name: str, files: Mapping[str, Path], facts: Any, *, progress: bool = False) -> Dataset:  # noqa: ANN401
        from terraseg.core.files import sha256_of_file

        hashes = {there: sha256_of_file(path) for there, path in files.items()}
        offers = [
            {"path": there, "size": path.stat().st_size, "sha256": hashes[there]} for there, path in files.items()
        ]
        asked = {"name": name, "facts": facts.model_dump(mode="json"), "files": offers}
        answer = self._transport.post("/datasets", asked)
        by_hash = {hashes[there]: path for there, path in files.items()}
        show, missing = _shown() if progress else None, answer["missing"]
        for number, need in enumerate(missing, start=1):
            self._send(answer["id"], need, by_hash[need["sha256"]])
            if show:
                show({"status": f"file {number} of {len(missing)}", "progress": {}})
        return self.get_dataset(answer["id"])

    def _send(self, dataset_id: str, need: Mapping[str, Any], path: Path) -> None:
        """Send a file from where the service has it.

        After a cut the service says how far it got; it may still be writing what came before the cut.
        """
        offset: int | None = need["offset"]

        def once() -> None:
            nonlocal offset
            if offset is None:
                missing = self.get_dataset(dataset_id).answer["missing"]
                offset = next((each["offset"] for each in missing if each["sha256"] == need["sha256"]), None)
                if offset is None:
                    return  # it was complete, only the answer was lost
            start, offset = offset, None
            with path.open("rb") as handle:
                handle.seek(start)
                self._transport.send(f"/datasets/{quote(dataset_id)}/files/{need['sha256']}?offset={start}", handle)

        self._transport.repeated(once, errors=(UnreachableError, LimitError, WrongStateError))

    def get_dataset(self, dataset_id: str) -> Dataset:
        """The dataset with an id.

        Raises:
            NotThereError: there is none.
        """
        return Dataset(self, self._transport.get(f"/datasets/{quote(dataset_id, safe='')}"))

    def list_datasets(self) -> list[Dataset]:
        """All datasets, the newest first."""
        return [Dataset(self, answer) for answer in self._transport.get("/datasets")]

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a dataset from the service.

        Raises:
            NotThereError: there is none with this id.
            WrongStateError: an unfinished job needs it.
        """
        self._transport.delete(f"/datasets/{quote(dataset_id, safe='')}")

    # --- models ---

    def fine_tune(self, base_model: str, dataset_id: str, metadata: Metadata = None) -> Model:
        """Queue a training.

        Args:
            base_model: name of one of `list_base_models`.
            dataset_id: id of the dataset.
            metadata: a mapping or JSON, see docs/service.md; what is missing gets its default.

        Raises:
            NotThereError: no such base model or dataset.
            ConfigError: unknown keys or invalid values, each named; or they do not fit the dataset.
        """
        asked = {"base_model": base_model, "dataset_id": dataset_id, "metadata": _mapping(metadata)}
        return Model(self, self._transport.post("/models", asked))

    def get_model_status(self, model_id: str) -> Model:
        """The model with an id; one that is not there has the status NOT_FOUND."""
        return Model(self, self._answer("model", model_id))

    def list_models(self) -> list[Model]:
        """All models, the newest first."""
        return [Model(self, answer) for answer in self._transport.get("/models")]

    def delete_model(self, model_id: str) -> None:
        """Delete a model that is not being trained.

        Raises:
            NotThereError: there is none with this id.
            WrongStateError: it has not ended, or an unfinished inference needs it.
        """
        self._transport.delete(_path("model", model_id))

    def download_bundle(self, model_id: str, local_dir: str | Path) -> Path:
        """Download the trained model.

        Returns:
            Its folder ``<local_dir>/<model_id>``, for `terraseg predict --bundle`.

        Raises:
            WrongStateError: the model is not COMPLETED.
        """
        from terraseg.core.files import unpack_tar

        archive = Path(local_dir) / f"{model_id}.tar.gz"
        self._transport.download(f"{_path('model', model_id)}/bundle", archive)
        unpack_tar(archive, Path(local_dir))
        archive.unlink()
        return Path(local_dir) / model_id

    def host(self, model_id: str) -> Model:
        """Keep a model warm on the service, so that `map_image` takes seconds. The least recently used leave memory.

        Raises:
            NotThereError: there is none with this id.
            WrongStateError: the model is not COMPLETED.
        """
        return Model(self, self._transport.post(f"{_path('model', model_id)}/host", timeout=LOADING))

    def map_image(
        self,
        model_id: str,
        path: str | Path,
        output: str | Path,
        *,
        bands: Sequence[str] | None = None,
        unit: str | None = None,
        nodata: float | None = None,
    ) -> Path:
        """Map one GeoTIFF (up to 64 MB) now, without a job; the first one with a model that is not warm takes longer.

        Args:
            model_id: id of a model that is COMPLETED.
            path: the image.
            output: file of the map.
            bands: of the image, if it does not state them, as for `create_dataset`.
            unit: the same.
            nodata: the same.

        Returns:
            ``output``.

        Raises:
            WrongStateError: the model is not COMPLETED.
            SceneError: the image can't be mapped.
        """
        from terraseg.core.files import atomic_path

        said = {"bands": None if bands is None else list(bands), "unit": unit, "nodata": nodata}
        query = {key: value for key, value in said.items() if value is not None}
        mapped = self._transport.transform(f"{_path('model', model_id)}/map", Path(path).read_bytes(), query)
        with atomic_path(output) as temporary:
            temporary.write_bytes(mapped)
        return Path(output)

    # --- inferences ---

    def start_inference(
        self,
        model_id: str,
        dataset_id: str | None = None,
        paths: Sequence[str | Path] | None = None,
        *,
        split: Literal["train", "val", "test"] = "test",
        metadata: Metadata = None,
    ) -> Inference:
        """Queue the mapping of the images of one split of a dataset, or of own GeoTIFFs.

        Args:
            model_id: id of a model that is COMPLETED.
            dataset_id: id of a dataset.
            paths: GeoTIFFs instead, like those of the training.
            split: of the dataset.
            metadata: a mapping or JSON, see docs/service.md: threshold, batch_size, and bands, unit and nodata of
                images that don't state them.

        Raises:
            NotThereError: no such model or dataset.
            WrongStateError: the model is not COMPLETED.
            ConfigError: neither a dataset nor paths, or both; invalid metadata.
            SceneError: an image can't be read; nothing has been sent.
        """
        said = _mapping(metadata)
        if (dataset_id is None) == (paths is None):
            raise ConfigError("dataset_id and paths are both given, or neither is", expected="one of them")
        if paths is not None:
            dataset_id = self._images(model_id, [Path(path) for path in paths], said).id
        asked = {
            "model_id": model_id,
            "dataset_id": dataset_id,
            "split": "test" if paths else split,
            "metadata": said,
        }
        return Inference(self, self._transport.post("/inferences", asked))

    def _images(self, model_id: str, paths: Sequence[Path], said: Mapping[str, Any]) -> Dataset:
        from terraseg.serve.jobs.folder import check_files

        files = {f"test/input/{path.name}": path for path in paths}
        if len(files) < len(paths) or not paths:
            raise SceneError(f"{len(paths)} images with {len(files)} names", expected="images of different names")
        if missing := [path for path in paths if not path.is_file()]:
            raise SceneError(f"no image at {missing[0]}", fix="correct the path")
        dates = self.get_model_status(model_id).answer["metadata"].get("num_frames")
        facts = check_files(files, **{key: said.get(key) for key in ("bands", "unit", "nodata")}, num_frames=dates)
        return self._upload(f"images of {model_id}", files, facts)

    def get_inference_status(self, inference_id: str) -> Inference:
        """The inference with an id; one that is not there has the status NOT_FOUND."""
        return Inference(self, self._answer("inference", inference_id))

    def list_inferences(self) -> list[Inference]:
        """All inferences, the newest first."""
        return [Inference(self, answer) for answer in self._transport.get("/inferences")]

    def delete_inference(self, inference_id: str) -> None:
        """Delete an inference that is not running, with its maps.

        Raises:
            NotThereError: there is none with this id.
            WrongStateError: it has not ended.
        """
        self._transport.delete(_path("inference", inference_id))

    def download_inference_results(self, inference_id: str, local_dir: str | Path) -> Path:
        """Download the results: a map for each image, the metrics of the split, and the model's card.

        Returns:
            The archive ``<local_dir>/<inference_id>.tar.gz``.

        Raises:
            WrongStateError: the inference is not COMPLETED.
        """
        archive = Path(local_dir) / f"{inference_id}.tar.gz"
        self._transport.download(f"{_path('inference', inference_id)}/results", archive)
        return archive

    def cancel(self, job_id: str) -> None:
        """Stop a model's training or an inference.

        Raises:
            NotThereError: there is none with this id.
            WrongStateError: it has ended.
        """
        kind: _Kind = "inference" if job_id.startswith("inference") else "model"
        self._transport.post(f"{_path(kind, job_id)}/cancel")

    def _answer(self, kind: _Kind, name: str) -> dict[str, Any]:
        try:
            return dict(self._transport.get(_path(kind, name)))
        except NotThereError:
            nothing: dict[str, Any] = {key: {} for key in ("metadata", "config", "progress", "result")}
            return {"id": name, "created": 0.0, "status": "NOT_FOUND", "error": None, **nothing}


def _path(kind: _Kind, name: str) -> str:
    return f"/{kind}s/{quote(name, safe='')}"


def _mapping(metadata: Metadata) -> dict[str, Any]:
    if not isinstance(metadata, str):
        return dict(metadata or {})
    try:
        values = json.loads(metadata)
    except ValueError as error:
        raise ConfigError(f"metadata is not JSON ({error})", expected="a mapping or JSON") from error
    if not isinstance(values, dict):
        raise ConfigError("metadata is JSON, but no mapping", expected="keys with values")
    return values


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
    progress, words = answer["progress"], [str(answer["status"])]
    if "step" in progress:
        words.append(f"step {progress['step']}")
        scores = ("train/loss", "val/loss", "val/iou")
        words += [f"{name} {progress[name]:.3f}" for name in scores if progress.get(name) is not None]
    if answer.get("metadata", {}).get("weights") == "random":
        words.append("from RANDOM weights")
    return ", ".join(words)
