"""The page as a Starlette application: routes, who may use them, and what every answer carries."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from daemon.config.sections import Settings
from daemon.errors import DaemonError
from daemon.jobs.files import JobFiles
from daemon.jobs.report import finding_line
from daemon.jobs.store import JobStore
from daemon.observe.audit import AuditLog
from daemon.observe.health import Health
from daemon.web import access, views
from daemon.web.slices import StackCache
from dicom_io.content.report import RESEARCH_USE_LINE

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
MOST_FORM_BYTES = 200_000

CONTENT_POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers send `Origin: null` with our own forms, too
    "X-Content-Type-Options": "nosniff",
}

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals.update(
    limits=views.LIMITS, research_use=RESEARCH_USE_LINE, state_words=views.STATE_WORDS, finding_line=finding_line
)
TEMPLATES.filters.update(ago=views.ago, clock=views.clock, megabytes=views.megabytes)


@dataclass(frozen=True)
class Page:
    """What the handlers work with.

    Attributes:
        files: Where the files of jobs are, brought here where they lie elsewhere.
        synthetic_banner: What must be said about the weights; None for nothing.
    """

    settings: Settings
    engine: sa.Engine
    store: JobStore
    audit: AuditLog
    health: Health
    access: access.Access
    stacks: StackCache
    files: JobFiles
    synthetic_banner: str | None


def page_of(request: Request) -> Page:
    """The surroundings of a request."""
    found: Page = request.app.state.page
    return found


def identity_of(request: Request) -> access.Identity:
    """Who asks; every handler outside `OPEN_PATHS` may count on it."""
    found: access.Identity = request.state.identity
    return found


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from a template."""
    page, identity = page_of(request), request.state.identity
    html = TEMPLATES.get_template(template).render(
        form_token=page.access.form_token(identity) if identity is not None else "",
        user=identity.user if identity is not None else "",
        signed_in_by=identity.how if identity is not None else "",
        banner=page.synthetic_banner,
        **values,
    )
    return HTMLResponse(html, status_code=status)


class Doorkeeper(BaseHTTPMiddleware):
    """Lets in who may, sets the headers of every answer, and turns foreseen errors into a page."""

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """One request."""
        started = time.monotonic()
        request.state.identity = None
        try:
            response = await self._admit(request) or await call_next(request)
        except access.Refused as refused:
            response = PlainTextResponse(f"{refused}\n", refused.status)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.method not in access.SAFE_METHODS or response.status_code >= 400:
            log.info(
                "%s %s: %d in %.0f ms",
                request.method, _route_name(request), response.status_code, 1000 * (time.monotonic() - started),
            )  # fmt: skip
        return response

    async def _admit(self, request: Request) -> Response | None:
        """None: go on. Otherwise the answer."""
        keeper = page_of(request).access
        keeper.check_host(request)
        path = request.url.path
        if path == "/metrics" and keeper.may_scrape(request):
            return None
        if path.startswith(access.OPEN_PATHS):
            return None
        identity = keeper.identify(request)
        if identity is None:
            if request.method in access.SAFE_METHODS and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse("/login", 303)
            raise access.Refused(401, "expected the token, as `Authorization: Bearer ...`")
        request.state.identity = identity
        return None


def _route_name(request: Request) -> str:
    """The route without its values, so that no id stands in a log that says what was asked."""
    return getattr(request.scope.get("endpoint"), "__name__", "unknown path")


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that one of our own pages sent.

    Raises:
        Refused: it is not from one of our pages, or too large.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_FORM_BYTES:
            raise access.Refused(413, f"expected a form of at most {MOST_FORM_BYTES} bytes")
    fields = {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
    page_of(request).access.check_meant(request, identity_of(request), fields.get("form_token", ""))
    return fields


async def login_form(request: Request) -> Response:
    """Asks for the token."""
    return render(request, "login.html", wrong=False)


async def login(request: Request) -> Response:
    """Takes the token and gives the session's cookie."""
    body = (await request.body())[:MOST_FORM_BYTES]
    shown = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[-1]
    keeper = page_of(request).access
    if not keeper.is_token(shown.strip()):
        await run_in_threadpool(time.sleep, 0.5)
        return render(request, "login.html", status=401, wrong=True)
    response = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    response.set_cookie(access.COOKIE, keeper.session(), httponly=True, samesite="strict", secure=secure)
    return response


def foreseen(request: Request, error: Exception) -> Response:
    """A foreseen error as a page: one sentence that says what is wrong."""
    return render(request, "error.html", status=getattr(error, "http_status", 400), text=str(error))


def refused(_request: Request, error: Exception) -> Response:
    """A refusal raised by a handler."""
    return PlainTextResponse(f"{error}\n", getattr(error, "status", 403))


def create_app(page: Page) -> Starlette:
    """The application."""
    from daemon.web import actions, pages

    routes = [
        Route("/", pages.overview, methods=["GET"]),
        Route("/refused", pages.refused, methods=["GET"]),
        Route("/reviews", pages.reviews, methods=["GET"]),
        Route("/reviews.jsonl", pages.reviews_export, methods=["GET"]),
        Route("/find", actions.find, methods=["POST"]),
        Route("/jobs/{job_id}", pages.job, methods=["GET"]),
        Route("/jobs/{job_id}/slices/{plane}/{index:int}.png", pages.grey_slice, methods=["GET"]),
        Route("/jobs/{job_id}/saliency/{plane}/{index:int}.png", pages.map_slice, methods=["GET"]),
        Route("/jobs/{job_id}/files.zip", pages.archive, methods=["GET"]),
        Route("/jobs/{job_id}/files/{path:path}", pages.download, methods=["GET"]),
        Route("/jobs/{job_id}/retry", actions.retry, methods=["POST"]),
        Route("/jobs/{job_id}/cancel", actions.cancel, methods=["POST"]),
        Route("/jobs/{job_id}/review", actions.review, methods=["POST"]),
        Route("/login", login_form, methods=["GET"]),
        Route("/login", login, methods=["POST"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
        Route("/healthz", pages.healthz, methods=["GET"]),
        Route("/readyz", pages.readyz, methods=["GET"]),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    app = Starlette(routes=routes, exception_handlers={DaemonError: foreseen, access.Refused: refused})
    app.add_middleware(Doorkeeper)
    app.state.page = page
    return app
