"""HTTP routes of the service; docs/service.md lists them."""

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from terraseg import __version__
from terraseg.core.files import output_error
from terraseg.errors import ConfigError, OutputError, TerrasegError
from terraseg.serve.http_errors import DeniedError, Fault, NotThereError, TooLargeError, WrongStateError, status_of
from terraseg.serve.processes import Command, Workers, worker_command
from terraseg.serve.queue import Queue
from terraseg.serve.recipes import find_recipes, resolve
from terraseg.serve.schema import (
    AskedPrediction,
    AskedTraining,
    AskedUpload,
    checked,
    dataset_answer,
    job_answer,
    metrics_file,
    plain,
)
from terraseg.serve.store import Job, Store, training_folder
from terraseg.serve.transfers import check_tiff, raster_path, receive, send_folder, too_large, unpack

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Settings:
    """Settings of a service.

    Attributes:
        root: folder of datasets and jobs.
        recipes: folder of the configs for trainings.
        weights: folder of the weights files that a request may name.
        token: token that requests must have; None: requests need no token and must come from this machine.
        max_upload: most bytes of an upload.
        command: command of the worker processes, see `Workers`.
    """

    root: Path
    recipes: Path
    weights: Path
    token: str | None = None
    max_upload: int = 20 * 10**9
    command: Command = worker_command


@dataclass
class _Upload:
    """An upload that is not a dataset yet. ``sizes`` are bytes by path."""

    folder: Path
    sizes: dict[str, int] = field(default_factory=dict)
    importing: bool = False


class Service:
    """The handlers.

    Args:
        settings: see `Settings`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store(settings.root)
        self._workers = Workers(settings.command)
        self._queue = Queue(self._store, self._workers)
        self._uploads: dict[str, _Upload] = {}
        self._one_import = asyncio.Lock()

    def application(self) -> web.Application:
        """The application. On start it queues interrupted jobs again; on exit it stops the running job."""
        application = web.Application(middlewares=[self._faults_as_json, self._only_the_allowed])
        application.add_routes(
            [
                web.get("/", self._about),
                web.get("/recipes", self._recipes),
                web.post("/uploads", self._new_upload),
                web.put("/uploads/{id}/files/{path:.+}", self._put_file),
                web.put("/uploads/{id}/archive", self._put_archive),
                web.post("/uploads/{id}/import", self._import),
                web.delete("/uploads/{id}", self._delete_upload),
                web.get("/datasets", self._datasets),
                web.get("/datasets/{id}", self._dataset),
                web.delete("/datasets/{id}", self._delete_dataset),
                web.post("/jobs", self._new_job),
                web.get("/jobs", self._jobs),
                web.get("/jobs/{id}", self._job),
                web.delete("/jobs/{id}", self._delete_job),
                web.post("/jobs/{id}/cancel", self._cancel),
                web.get("/jobs/{id}/log", self._job_log),
                web.get("/jobs/{id}/metrics/{split}", self._metrics),
                web.get("/jobs/{id}/bundle", self._bundle),
                web.get("/jobs/{id}/product", self._product),
            ]
        )
        application.cleanup_ctx.append(self._working)
        return application

    async def _working(self, _: web.Application) -> AsyncIterator[None]:
        self._store.open()
        self._queue.recover()
        task = asyncio.create_task(self._queue.run())
        task.add_done_callback(_ended)
        yield
        task.cancel()
        await asyncio.wait([task])

    # --- middleware of all requests ---

    @web.middleware
    async def _faults_as_json(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except TerrasegError as error:
            return _answer({"error": Fault.of(error).json()}, status=status_of(error))
        except web.HTTPException as error:
            fault = Fault(
                "NotThereError" if error.status == 404 else "ServiceError",
                f"{request.method} {request.path}: {error.reason}",
            )
            return _answer({"error": fault.json()}, status=error.status)
        except OSError as error:
            failure = output_error(error, self._store.root)
            if not isinstance(failure, OutputError):
                raise
            return _answer({"error": Fault.of(failure).json()}, status=status_of(failure))

    @web.middleware
    async def _only_the_allowed(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if "Origin" in request.headers:
            raise DeniedError("the request comes from a web page", expected="the SDK or another program")
        token = self._settings.token
        if token is None:
            # Otherwise a web page could reach this service with a host name that resolves to this machine.
            if (request.url.host or "") not in LOOPBACK:
                raise DeniedError(f"the request is for host {request.url.host!r}", expected="127.0.0.1 or localhost")
        elif not hmac.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()):
            raise DeniedError(
                "the token is wrong" if "Authorization" in request.headers else "the request has no token",
                fix="send the token of the service: Authorization: Bearer TOKEN",
            )
        return await handler(request)

    # --- the service ---

    async def _about(self, _: web.Request) -> web.Response:
        return _answer({"service": "terraseg", "version": __version__, "max_upload": self._settings.max_upload})

    async def _recipes(self, _: web.Request) -> web.Response:
        return _answer([recipe.json() for recipe in find_recipes(self._settings.recipes)])

    # --- uploads and datasets ---

    async def _new_upload(self, request: web.Request) -> web.Response:
        asked = checked(AskedUpload, await _body(request))
        if asked.size > self._settings.max_upload:
            raise TooLargeError(
                f"an upload of {asked.size / 1e9:.3g} GB",
                expected=f"at most {self._settings.max_upload / 1e9:.3g} GB",
                fix="upload fewer images, or start the service with a larger --max-upload-gb",
            )
        folder = self._store.new_upload(asked.name, {"kind": "import", **plain(asked)})
        self._uploads[folder.name] = _Upload(folder)
        return _answer({"id": folder.name}, status=201)

    async def _put_file(self, request: web.Request) -> web.Response:
        upload, name = self._upload(request), request.match_info["path"]
        path = raster_path(name)
        room = self._settings.max_upload - sum(size for other, size in upload.sizes.items() if other != str(path))
        if (request.content_length or 0) > room:
            raise too_large(room)
        target = upload.folder / "files" / path
        size = await receive(request.content.iter_chunked(_CHUNK), target, room=room)
        check_tiff(target, name)
        upload.sizes[str(path)] = size
        return _answer({"path": str(path), "size": size}, status=201)

    async def _put_archive(self, request: web.Request) -> web.Response:
        upload = self._upload(request)
        room, archive = self._settings.max_upload - sum(upload.sizes.values()), upload.folder / "archive.tar"
        if (request.content_length or 0) > room:
            raise too_large(room)
        await receive(request.content.iter_chunked(_CHUNK), archive, room=room)
        try:
            files = upload.folder / "files"
            unpacked = await asyncio.to_thread(unpack, archive, files, room=room)
        finally:
            archive.unlink()
        upload.sizes |= unpacked.sizes
        return _answer({"files": len(unpacked.sizes), "left_out": unpacked.left_out}, status=201)

    async def _import(self, request: web.Request) -> web.Response:
        upload = self._upload(request)
        upload.importing = True
        try:
            async with self._one_import:
                fault = await self._workers.run(upload.folder)
        finally:
            await self._forget(upload)
        if fault is not None:
            raise fault.without(str(upload.folder / "files")).error()
        return _answer(dataset_answer(self._store, upload.folder.name), status=201)

    async def _delete_upload(self, request: web.Request) -> web.Response:
        await self._forget(self._upload(request))
        return web.Response(status=204)

    async def _forget(self, upload: _Upload) -> None:
        self._uploads.pop(upload.folder.name, None)
        await asyncio.to_thread(self._store.delete_upload, upload.folder)

    def _upload(self, request: web.Request) -> _Upload:
        return self._known_upload(request.match_info["id"])

    def _known_upload(self, name: str) -> _Upload:
        if name not in self._uploads:
            raise NotThereError(
                f"no upload {name!r}", expected="an upload that is not imported yet", fix="start the upload again"
            )
        if self._uploads[name].importing:
            raise WrongStateError(f"upload {name} is being imported")
        return self._uploads[name]

    async def _datasets(self, _: web.Request) -> web.Response:
        return _answer([dataset_answer(self._store, name) for name in self._store.dataset_ids()])

    async def _dataset(self, request: web.Request) -> web.Response:
        return _answer(dataset_answer(self._store, request.match_info["id"]))

    async def _delete_dataset(self, request: web.Request) -> web.Response:
        self._store.delete_dataset(request.match_info["id"])
        return web.Response(status=204)

    # --- jobs ---

    async def _new_job(self, request: web.Request) -> web.Response:
        body = await _body(request)
        predicts = isinstance(body, dict) and body.get("kind") == "predict"
        job = await self._new_prediction(body) if predicts else self._new_training(body)
        self._queue.notify()
        return _answer(job_answer(self._store, job), status=201)

    def _new_training(self, body: object) -> Job:
        asked, name = checked(AskedTraining, body), self._store.new_job_id()
        config = resolve(
            asked,
            recipes=self._settings.recipes,
            weights=self._settings.weights,
            dataset=self._store.dataset(asked.dataset),
            output=self._store.jobs / name / "outputs",
        )
        # Kept here because the dataset may be deleted before an image is mapped.
        request = {**plain(asked), "import": self._store.import_options(asked.dataset)}
        return self._store.add_job(name, request, config=config)

    async def _new_prediction(self, body: object) -> Job:
        asked = checked(AskedPrediction, body)
        self._succeeded(asked.job, kind="train", what="a model")
        upload = self._known_upload(asked.upload)
        if len(upload.sizes) != 1:
            raise ConfigError(f"upload {asked.upload} has {len(upload.sizes)} files", expected="one image")
        (image,) = upload.sizes
        request = {**plain(asked), "image": image, "assumed": self._store.request(asked.job)["import"]}
        job = self._store.add_job(self._store.new_job_id(), request, files=upload.folder / "files")
        await self._forget(upload)
        return job

    async def _jobs(self, _: web.Request) -> web.Response:
        return _answer([job_answer(self._store, job) for job in self._store.all_jobs()])

    async def _job(self, request: web.Request) -> web.Response:
        return _answer(job_answer(self._store, self._store.job(request.match_info["id"])))

    async def _delete_job(self, request: web.Request) -> web.Response:
        self._store.delete_job(request.match_info["id"])
        return web.Response(status=204)

    async def _cancel(self, request: web.Request) -> web.Response:
        self._queue.cancel(request.match_info["id"])
        return await self._job(request)

    async def _job_log(self, request: web.Request) -> web.StreamResponse:
        path = self._store.job_folder(request.match_info["id"]) / "log.txt"
        return (
            web.FileResponse(path, headers={"Content-Type": "text/plain; charset=utf-8"})
            if path.is_file()
            else web.Response()
        )

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        name, split = request.match_info["id"], request.match_info["split"]
        path = metrics_file(self._store.job_folder(name), split)
        if split not in ("val", "test") or not path.is_file():
            raise NotThereError(f"job {name} has no metrics of split {split!r} (it is {self._store.job(name).state})")
        return web.FileResponse(path)

    async def _bundle(self, request: web.Request) -> web.StreamResponse:
        folder = self._succeeded(request.match_info["id"], kind="train", what="a bundle")
        return await send_folder(request, training_folder(folder) / "bundle")

    async def _product(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        folder = self._succeeded(name, kind="predict", what="a map")
        image = Path(self._store.request(name)["image"])
        return await send_folder(request, folder / "outputs" / image.stem)

    def _succeeded(self, name: str, *, kind: str, what: str) -> Path:
        """Folder of a job of this kind that has succeeded.

        Raises:
            NotThereError: no such job.
            WrongStateError: the job has not succeeded, or is of another kind.
        """
        job = self._store.job(name)
        if job.kind != kind or job.state != "succeeded":
            raise WrongStateError(
                f"job {name} ({job.kind}) is {job.state}",
                expected=f"a {kind} job that has succeeded, with {what}",
            )
        return self._store.job_folder(name)


def _ended(task: "asyncio.Task[None]") -> None:
    """Stop the service if its queue fails: otherwise it would accept jobs and never run them."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("the queue of jobs failed: %s", error, exc_info=error)
        raise web.GracefulExit


async def _body(request: web.Request) -> object:
    try:
        return await request.json(loads=_loads)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body of {request.method} {request.path} is not JSON ({error})") from error


def _loads(text: str) -> object:
    """Parse JSON; NaN and infinity, which Python would accept, raise an error."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    return json.loads(text, parse_constant=refuse)


def _answer(value: object, *, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, dumps=_dumps)


def _dumps(value: Any) -> str:  # noqa: ANN401  # anything that JSON knows
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
