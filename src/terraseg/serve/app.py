"""HTTP routes of the service; /docs of a running service lists them, docs/service.md explains them."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from terraseg import __version__
from terraseg.core.files import output_error
from terraseg.errors import ConfigError, OutputError, TerrasegError
from terraseg.serve.auth import Gate
from terraseg.serve.database import Job, new_id
from terraseg.serve.datasets import Datasets, check_tiff
from terraseg.serve.http_errors import Fault, NotThereError, TooLargeError, WrongStateError, status_of
from terraseg.serve.jobs.hosting import Host
from terraseg.serve.jobs.queue import Queue
from terraseg.serve.jobs.recipes import find_recipes, ignored_values, resolve
from terraseg.serve.pages import add_pages
from terraseg.serve.schema import (
    DatasetAnswer,
    ErrorAnswer,
    Facts,
    FileNeed,
    JobAnswer,
    NewDataset,
    NewInference,
    NewModel,
    TrainingMetadata,
    Unit,
    job_answer,
)

_log = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": about}
    for status, about in {
        400: "the request can't be read",
        401: "no API key, or a wrong one",
        404: "not there, or another user's",
        409: "not in a state that allows it",
        413: "too large",
        422: "the data or the request is wrong",
        429: "too often, or too many unfinished jobs",
        503: "the database does not answer: try again",
        507: "the disk is full",
    }.items()
}
"""What any request may answer, for the OpenAPI document."""

_A_FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""The body of a request that is a file, for the OpenAPI document."""

_MOST_JSON = 64 << 20
"""Bytes of the largest request that is no file."""


@dataclass(frozen=True)
class Service:
    """What the routes need.

    Attributes:
        gate: finds the user of a request.
        datasets: the datasets.
        queue: models and inferences.
        host: warm models.
        recipes: folder of the base models.
        weights: folder of the weights files that a request may name.
    """

    gate: Gate
    datasets: Datasets
    queue: Queue
    host: Host
    recipes: Path
    weights: Path


def create_app(service: Service) -> FastAPI:
    """The application."""
    app = FastAPI(
        title="terraseg",
        redirect_slashes=False,
        version=__version__,
        description="Fine-tune geospatial models and map images. docs/service.md shows the Python SDK.",
        separate_input_output_schemas=False,
    )
    app.add_middleware(_LimitedBodies)
    bearer = Depends(HTTPBearer(auto_error=False, description="an API key"))  # only documents what the gate does
    app.include_router(_router(service), prefix="/api", responses=_ERRORS, dependencies=[bearer])
    add_pages(app, service)

    @app.exception_handler(TerrasegError)
    async def fault(_: Request, error: TerrasegError) -> Response:
        return _fault(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        said = "; ".join(
            f"{'.'.join(map(str, each['loc'][1:]))}: "
            + ("unknown key" if each["type"] == "extra_forbidden" else each["msg"].removeprefix("Value error, "))
            for each in error.errors()
        )
        return _fault(ConfigError(said[:2000] or "the request is not JSON"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        fault = Fault(
            "NotThereError" if error.status_code == 404 else "ServiceError", f"{request.method}: {error.detail}"
        )
        return JSONResponse({"error": fault.json()}, error.status_code, headers=error.headers)

    @app.exception_handler(OperationalError)
    async def away(_: Request, error: OperationalError) -> Response:
        _log.warning("the database does not answer: %s", str(error.orig).split("\n", 1)[0])
        fault = Fault("ServiceError", "the database of the service does not answer", fix="try again later")
        return JSONResponse({"error": fault.json()}, 503, headers={"Retry-After": "2"})

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> Response:
        failure = output_error(error, service.datasets.parts)
        if not isinstance(failure, OutputError):
            raise error
        return _fault(failure)

    return app


def _fault(error: TerrasegError) -> Response:
    status = status_of(error)
    if isinstance(error, OutputError):  # its path is the server's, and its fix for those who run it
        _log.error("%s", error)
        error = OutputError("the service can't write its files", fix="ask those who run it to look at its disk and log")
    headers = {"Retry-After": "2"} if status == 429 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": Fault.of(error).json()}, status, headers=headers)


class _LimitedBodies:
    """Stops requests that are larger than `_MOST_JSON`, whatever length they claim; files have their own limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "PUT":
            await self._app(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > _MOST_JSON:
                raise TooLargeError(f"a request of more than {_MOST_JSON >> 20} MB")
            return message

        await self._app(scope, limited, send)


def _router(service: Service) -> APIRouter:
    router = APIRouter()
    user_of = Annotated[str, Depends(service.gate.user)]

    @router.get("/about")
    def about(user: user_of) -> dict[str, Any]:
        """Version and limits of the service, and who asks."""
        limits = {"max_upload": service.datasets.max_upload, "quota": service.datasets.quota}
        return {"service": "terraseg", "version": __version__, "user": user, **limits}

    @router.get("/base_models")
    def base_models(user: user_of) -> list[dict[str, Any]]:  # noqa: ARG001  # who asks must be known
        """The base models: name, about, backbone, bands, weights and licence of each."""
        return [recipe.json() for recipe in find_recipes(service.recipes)]

    _dataset_routes(router, service, user_of)
    _host_routes(router, service, user_of)
    for kind, path in (("model", "/models"), ("inference", "/inferences")):
        _job_routes(router, service, user_of, kind=kind, path=path)

    @router.post("/models", status_code=201)
    def fine_tune(asked: NewModel, user: user_of) -> JobAnswer:
        """Fine-tune a model; the answer holds its whole metadata and its config."""
        dataset = service.datasets.get(user, asked.dataset_id)
        service.datasets.check_files(user, dataset.id)
        facts = Facts.model_validate(dataset.facts)
        metadata, config = resolve(
            asked.metadata, asked.base_model, recipes=service.recipes, weights=service.weights, facts=facts
        )
        request = {
            "base_model": asked.base_model,
            "metadata": metadata.model_dump(mode="json"),
            "config": config,
            "facts": dataset.facts,
        }
        return job_answer(service.queue.add(_job("model", user, dataset.id, request)))

    @router.post("/inferences", status_code=201)
    def start_inference(asked: NewInference, user: user_of) -> JobAnswer:
        """Map the images of one split of a dataset."""
        model = _completed(service.queue.get(user, "model", asked.model_id))
        dataset = service.datasets.get(user, asked.dataset_id)
        service.datasets.check_files(user, dataset.id, asked.split)
        bands = asked.metadata.bands or dataset.facts["bands"]
        if lacking := sorted(set(model.request["metadata"]["bands"]) - set(bands)):
            found = f"the images have no band {', '.join(lacking)}, which the model takes"
            raise ConfigError(found, expected=", ".join(model.request["metadata"]["bands"]))
        dates, own = (each.get("num_frames", 1) for each in (dataset.facts, model.request["facts"]))
        if dates != own:
            raise ConfigError(f"the images have num_frames {dates}, the model was trained on {own}", expected=str(own))
        request = {
            "base_model": model.request["base_model"],
            "split": asked.split,
            "model_id": model.id,
            "metadata": asked.metadata.model_dump(mode="json"),
            "ignored": ignored_values(TrainingMetadata.model_validate(model.request["metadata"])),
            "facts": dataset.facts,
        }
        return job_answer(service.queue.add(_job("inference", user, dataset.id, request, model_id=model.id)))

    return router


def _completed(job: Job) -> Job:
    if job.status != "COMPLETED":
        raise WrongStateError(f"{job.id} is {job.status}", expected="COMPLETED", fix="wait for it")
    return job


def _job(kind: str, user: str, dataset: str, request: dict[str, Any], *, model_id: str | None = None) -> Job:
    return Job(
        id=new_id(kind), user=user, kind=kind, created=time.time(), dataset_id=dataset, model_id=model_id,
        request=request, status="QUEUED", progress={}, result={}, attempts=0, cancelled=False, size=0,
    )  # fmt: skip


def _dataset_routes(router: APIRouter, service: Service, user_of: Any) -> None:  # noqa: ANN401
    datasets = service.datasets

    @router.post("/datasets", status_code=201)
    def create_dataset(asked: NewDataset, user: user_of) -> DatasetAnswer:
        """Agree on the files of a dataset; the answer says which are missing on the service."""
        return datasets.create(user, asked)

    @router.get("/datasets")
    def list_datasets(user: user_of) -> list[DatasetAnswer]:
        """All datasets of the user, the newest first."""
        return datasets.all(user)

    @router.get("/datasets/{dataset_id}")
    def get_dataset(dataset_id: str, user: user_of) -> DatasetAnswer:
        """A dataset, and which of its files are missing."""
        return datasets.get(user, dataset_id)

    @router.delete("/datasets/{dataset_id}", status_code=204)
    def delete_dataset(dataset_id: str, user: user_of) -> None:
        """Delete a dataset, and those of its files that are in no other."""
        datasets.delete(user, dataset_id)

    @router.put("/datasets/{dataset_id}/files/{sha256}", openapi_extra=_A_FILE)
    async def put_file(
        dataset_id: str, sha256: str, request: Request, user: user_of, offset: Annotated[int, Query(ge=0)] = 0
    ) -> FileNeed | None:
        """Add bytes to a file, from an offset on; null: the file is complete. A cut connection loses nothing."""
        try:
            return await datasets.receive(user, dataset_id, sha256, request.stream(), offset=offset)
        except ClientDisconnect:
            _log.info("the upload of %s was cut", sha256)
            raise ConfigError("the connection was cut") from None


def _host_routes(router: APIRouter, service: Service, user_of: Any) -> None:  # noqa: ANN401
    queue, host = service.queue, service.host

    def completed(user: str, model_id: str) -> Job:
        return _completed(queue.get(user, "model", model_id))

    @router.post("/models/{model_id}/host")
    def host_model(model_id: str, user: user_of) -> JobAnswer:
        """Load a model, so that maps of single images take seconds; models not used for long leave memory."""
        model = completed(user, model_id)
        host.load(model_id)
        return job_answer(model, hosted=True)

    @router.delete("/models/{model_id}/host", status_code=204)
    def unhost_model(model_id: str, user: user_of) -> None:
        """Take a model out of memory."""
        queue.get(user, "model", model_id)
        host.forget(model_id)

    @router.post(
        "/models/{model_id}/map", response_class=Response, openapi_extra=_A_FILE,
        responses={200: {"content": {"image/tiff": {}}}},
    )  # fmt: skip
    async def map_image(
        model_id: str,
        request: Request,
        user: user_of,
        bands: Annotated[list[str] | None, Query(max_length=32)] = None,
        unit: Unit | None = None,
        nodata: float | None = None,
    ) -> Response:
        """The map (a GeoTIFF) of an image (the body, a GeoTIFF); bands, unit and nodata if it does not state them."""
        await run_in_threadpool(completed, user, model_id)
        with host.room() as room:
            with (room / "image.tif").open("wb") as handle:
                async for chunk in request.stream():
                    handle.write(chunk)
            check_tiff(room / "image.tif", "the body of the request")
            said = {"bands": bands, "unit": unit, "nodata": nodata}
            try:
                await run_in_threadpool(host.map, model_id, room / "image.tif", room / "map.tif", said)
            except TerrasegError as error:
                raise Fault.of(error).without(str(room)).error() from error
            return Response((room / "map.tif").read_bytes(), media_type="image/tiff")


def _job_routes(router: APIRouter, service: Service, user_of: Any, *, kind: str, path: str) -> None:  # noqa: ANN401
    queue = service.queue
    result = "bundle" if kind == "model" else "results"

    @router.get(path, name=f"list_{kind}s")
    def list_all(user: user_of) -> list[JobAnswer]:
        """All of the user, the newest first."""
        return [job_answer(job) for job in queue.all(user, kind)]

    @router.get(f"{path}/{{job_id}}", name=f"get_{kind}", response_model=JobAnswer)
    async def get_one(job_id: str, user: user_of) -> Response:
        """Status, progress, metadata, config and metrics."""
        answer = job_answer(await queue.status(user, kind, job_id), hosted=service.host.is_warm(job_id))
        return Response(answer.model_dump_json(), media_type="application/json")  # checked already

    @router.delete(f"{path}/{{job_id}}", name=f"delete_{kind}", status_code=204)
    def delete_one(job_id: str, user: user_of) -> None:
        """Delete it with its results."""
        queue.delete(user, kind, job_id)
        service.host.forget(job_id)

    @router.post(f"{path}/{{job_id}}/cancel", name=f"cancel_{kind}")
    def cancel(job_id: str, user: user_of) -> JobAnswer:
        """Stop it: at once if it is queued, else within seconds."""
        return job_answer(queue.cancel(user, kind, job_id))

    @router.get(f"{path}/{{job_id}}/log", name=f"{kind}_log", response_class=Response,
                responses={200: {"content": {"text/plain": {}}}})  # fmt: skip
    def log(job_id: str, user: user_of) -> Response:
        """The log of its process, when it has ended."""
        queue.get(user, kind, job_id)
        key = f"jobs/{job_id}/log.txt"
        return _file(service, key, "text/plain; charset=utf-8") if queue.store.size(key) else PlainTextResponse("")

    @router.get(f"{path}/{{job_id}}/{result}", name=f"{kind}_{result}", response_class=StreamingResponse,
                responses={200: {"content": {"application/gzip": {}}}})  # fmt: skip
    def download(job_id: str, user: user_of) -> Response:
        """The results as a .tar.gz."""
        _completed(queue.get(user, kind, job_id))
        return _file(service, f"jobs/{job_id}/{result}.tar.gz", "application/gzip")


def _file(service: Service, key: str, kind: str) -> Response:
    size = service.queue.store.size(key)
    if size is None:
        raise NotThereError(f"{key} is gone", fix="it was deleted at this moment")
    name = key.replace("/", "-").removeprefix("jobs-")
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(service.queue.store.chunks(key), media_type=kind, headers=headers)
