"""The page as a Starlette application: routes, who may use them, and what every answer carries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from daemon.errors import DaemonError
from daemon.web import access, actions, figures, pages, upload
from daemon.web.context import HERE, Page, fields_of, page_of, render

WRONG_SECONDS = 0.5
"""How long a wrong token waits for its answer."""
MOST_WRONG_LOGINS = 20
"""So many may wait at once: guessing is bounded, and right tokens are let in all the same."""
log = logging.getLogger(__name__)


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


async def login_form(request: Request) -> Response:
    """Asks for the token."""
    return render(request, "login.html", wrong=False)


async def login(request: Request) -> Response:
    """Takes the token and gives the session's cookie."""
    keeper = page_of(request).access
    if not keeper.web.token.get_secret_value():
        raise access.Refused(404, "this page has no login")
    shown = (await fields_of(request)).get("token", "")
    if not keeper.is_token(shown.strip()):
        waiting = request.app.state.wrong_logins
        if waiting.locked():
            raise access.Refused(429, "too many wrong tokens at once: try again in a moment")
        async with waiting:
            await asyncio.sleep(WRONG_SECONDS)
        return render(request, "login.html", status=401, wrong=True)
    response = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    response.set_cookie(
        access.COOKIE, keeper.session(), httponly=True, samesite="strict", secure=secure,
        max_age=keeper.session_seconds,
    )  # fmt: skip
    return response


def foreseen(request: Request, error: Exception) -> Response:
    """A foreseen error as a page: one sentence that says what is wrong."""
    return render(request, "error.html", status=getattr(error, "http_status", 400), text=str(error))


def refused(_request: Request, error: Exception) -> Response:
    """A refusal raised by a handler."""
    return PlainTextResponse(f"{error}\n", getattr(error, "status", 403))


def away(_request: Request, error: Exception) -> Response:
    """The database does not answer: said in a line, and nothing is looked up for it."""
    log.warning("the page cannot be shown: %s", type(error).__name__)
    return PlainTextResponse("the database does not answer just now: try again in a moment\n", 503)


HANDLERS = {
    DaemonError: foreseen, access.Refused: refused, sa.exc.OperationalError: away, sa.exc.InterfaceError: away,
}  # fmt: skip


def create_app(page: Page) -> Starlette:
    """The application."""
    routes = [
        Route("/", pages.job_list, methods=["GET"]),
        Route("/refused", pages.refused, methods=["GET"]),
        Route("/reviews", pages.reviews, methods=["GET"]),
        Route("/upload", upload.upload_form, methods=["GET"]),
        Route("/upload", upload.upload, methods=["POST"]),
        Route("/figures", figures.figures, methods=["GET"]),
        Route("/reviews.jsonl", pages.reviews_export, methods=["GET"]),
        Route("/search", pages.search, methods=["POST"]),
        Route("/jobs/{job_id}", pages.job, methods=["GET"]),
        Route("/jobs/{job_id}/slices/{plane}/{index:int}.png", pages.grey_slice, methods=["GET"]),
        Route("/jobs/{job_id}/saliency/{plane}/{index:int}.png", pages.map_slice, methods=["GET"]),
        Route("/jobs/{job_id}/files.zip", pages.archive, methods=["GET"]),
        Route("/jobs/{job_id}/files/{path:path}", pages.download, methods=["GET"]),
        Route("/destinations/{name}/test", actions.test_destination, methods=["POST"]),
        Route("/destinations/{name}/retry", actions.retry_destination, methods=["POST"]),
        Route("/queue/pause", actions.pause, methods=["POST"]),
        Route("/queue/resume", actions.resume, methods=["POST"]),
        Route("/arriving/complete", actions.complete, methods=["POST"]),
        Route("/jobs/{job_id}/deliveries/{name}/retry", actions.retry_delivery, methods=["POST"]),
        Route("/jobs/{job_id}/retry", actions.retry, methods=["POST"]),
        Route("/jobs/{job_id}/cancel", actions.cancel, methods=["POST"]),
        Route("/jobs/{job_id}/review", actions.review, methods=["POST"]),
        Route("/pulls/{pull_id}/pause", actions.pause_pull, methods=["POST"]),
        Route("/pulls/{pull_id}/resume", actions.resume_pull, methods=["POST"]),
        Route("/login", login_form, methods=["GET"]),
        Route("/login", login, methods=["POST"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
        Route("/healthz", pages.healthz, methods=["GET"]),
        Route("/readyz", pages.readyz, methods=["GET"]),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.add_middleware(Doorkeeper)
    app.state.page = page
    app.state.wrong_logins = asyncio.Semaphore(MOST_WRONG_LOGINS)
    return app
