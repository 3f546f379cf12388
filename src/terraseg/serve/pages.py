"""The web page of the service: what a user has, how jobs get on, scores and maps; rendered here, with no build step."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader

from terraseg.errors import TerrasegError
from terraseg.serve.auth import COOKIE
from terraseg.serve.database import OVER
from terraseg.serve.http_errors import DeniedError, NotThereError, status_of
from terraseg.serve.schema import JobAnswer, job_answer

if TYPE_CHECKING:
    from terraseg.serve.app import Service

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'"
)
_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MOST_KEY = 1000
_KINDS = ("model", "inference")


def add_pages(app: FastAPI, service: "Service") -> None:
    """Add the pages to the application; they are no part of its API."""
    environment = Environment(loader=PackageLoader("terraseg.serve"), autoescape=True, trim_blocks=True)
    environment.globals.update(number=_number, interval=_interval, rows=_rows)
    router = APIRouter(include_in_schema=False)

    def page(name: str, *, status: int = 200, **values: Any) -> Response:  # noqa: ANN401
        text = environment.get_template(f"{name}.html.j2").render(**values)
        return HTMLResponse(text, status, headers=_HEADERS)

    async def user_of(request: Request) -> str:
        """As for the API, but an error is a page."""
        try:
            return await service.gate.user(request)
        except TerrasegError as error:
            raise _PageError(error) from error

    user_type = Annotated[str, Depends(user_of)]

    @app.exception_handler(_PageError)
    async def failed(request: Request, error: _PageError) -> Response:
        status, said = status_of(error.cause), str(error.cause)
        if not isinstance(error.cause, DeniedError):
            return page("message", status=status, title="That did not work", user="", message=said)
        tried = COOKIE in request.cookies or "origin" in request.headers
        return page("login", status=status, title="Log in", user="", error=said if tried else "")

    @router.get("/")
    def index(user: user_type) -> Response:
        models, inferences = ([job_answer(job) for job in service.queue.all(user, kind)] for kind in _KINDS)
        datasets = service.datasets.all(user)
        return page("index", title="terraseg", user=user, datasets=datasets, models=models, inferences=inferences)

    for kind in _KINDS:
        _job_pages(router, service, page, user_type, kind=kind)

    @router.get("/inferences/{job_id}/previews/{name}")
    def preview(job_id: str, name: str, user: user_type) -> Response:
        try:
            service.queue.get(user, "inference", job_id)
            number, _, kind = name.removesuffix(".png").partition("-")
            key = f"jobs/{job_id}/previews/{number}-{kind}.png"
            if not number.isdecimal() or kind not in ("image", "map") or service.queue.store.size(key) is None:
                raise NotThereError(f"no preview {name!r}")
        except NotThereError as error:
            return Response(str(error), 404, headers=_HEADERS, media_type="text/plain")
        return Response(b"".join(service.queue.store.chunks(key)), media_type="image/png", headers=_HEADERS)

    @router.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @router.post("/login")
    async def login(request: Request) -> Response:
        body = await request.body()
        key = parse_qs(body[:_MOST_KEY].decode("ascii", "replace")).get("key", [""])[0]
        answer = RedirectResponse("/", 303, headers=_HEADERS)
        answer.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer

    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        source = environment.get_template("page.css.j2" if name == "page.css" else name).render()
        _static(router, name, source, kind)
    app.include_router(router)


class _PageError(Exception):
    """Why a page can't be shown."""

    def __init__(self, cause: TerrasegError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _job_pages(router: APIRouter, service: "Service", page: Any, user_type: Any, *, kind: str) -> None:  # noqa: ANN401
    path = f"{kind}s"

    @router.get(f"/{path}/{{job_id}}", name=f"page of {kind}")
    def show(job_id: str, user: user_type) -> Response:
        try:
            job = job_answer(service.queue.get(user, kind, job_id))
        except NotThereError as error:
            raise _PageError(error) from error
        shown = {"running": job.status not in OVER, "curves": _curves(job), "path": path}
        return page("job", title=job.id, user=user, job=job, previews=job.result.get("previews", []), **shown)  # type: ignore[no-any-return]

    @router.post(f"/{path}/{{job_id}}/cancel", name=f"cancel {kind} on page")
    def cancel(job_id: str, user: user_type) -> Response:
        try:
            service.queue.cancel(user, kind, job_id)
        except TerrasegError as error:
            raise _PageError(error) from error
        return RedirectResponse(f"/{path}/{job_id}", 303)


def _static(router: APIRouter, name: str, source: str, kind: str) -> None:
    @router.get(f"/{name}", name=name)
    def static() -> Response:
        return Response(source, media_type=kind, headers={"Cache-Control": "max-age=3600"})


def _curves(job: JobAnswer) -> dict[str, Any] | None:
    """Points of the loss curves in the drawing's pixels; None without at least two validations."""
    rows = [row for row in job.progress.get("curve", []) if row[0] is not None]
    values = [value for row in rows for value in row[1:3] if value is not None]
    if len(rows) < 2 or not values:
        return None
    low, high, last = min(values), max(values), rows[-1][0]

    def points(column: int) -> str:
        known = [(row[0], row[column]) for row in rows if row[column] is not None]
        return " ".join(
            f"{40 + 550 * step / last:.1f},{190 - 180 * (value - low) / ((high - low) or 1):.1f}"
            for step, value in known
        )

    lines = [("train", points(1), False), ("val", points(2), True)]
    return {"lines": lines, "low": f"{low:.3g}", "high": f"{high:.3g}", "last": last}


def _rows(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    classes = [(f"IoU of {name}", estimate) for name, estimate in found["per_class_iou"].items()]
    return [*classes, ("mean IoU", found["mean_iou"]), ("mean accuracy", found["mean_accuracy"])]


def _number(estimate: Mapping[str, Any]) -> str:
    return "undefined" if estimate["value"] is None else f"{estimate['value']:.3f}"


def _interval(estimate: Mapping[str, Any]) -> str:
    return estimate["reason"] if estimate["low"] is None else f"{estimate['low']:.3f} to {estimate['high']:.3f}"
