"""What the handlers of the page work with, and how they render it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import HTMLResponse

from daemon.config.sections import Settings
from daemon.jobs.files import JobFiles
from daemon.jobs.report import finding_line
from daemon.jobs.store import JobStore
from daemon.observe.audit import AuditLog
from daemon.observe.health import Health
from daemon.observe.metrics import counted
from daemon.web import access, views
from daemon.web.slices import StackCache
from dicom_io.content.report import RESEARCH_USE_LINE
from dicom_io.header import readable_name

HERE = Path(__file__).parent
MOST_FORM_BYTES = 200_000
FORM_SECONDS = 20.0
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
TEMPLATES.filters.update(
    person=readable_name,
    ago=views.ago,
    clock=views.clock,
    megabytes=views.megabytes,
    minute=views.minute,
    day=views.day,
    brief=views.brief,
)


@dataclass(frozen=True)
class Page:
    """What the handlers work with.

    Attributes:
        files: Where the files of jobs are, brought here where they lie elsewhere.
        synthetic_banner: What must be said about the weights that are at work; None for nothing.
        service_pid: Process id of the service.
        service_metrics: What the service counted, in Prometheus' text format.
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
    service_pid: int = field(default_factory=os.getpid)
    service_metrics: Callable[[], bytes] = counted


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
        names=identity is not None and identity.sees_names,
        uploads=page.settings.web.upload,
        **{"banner": page.synthetic_banner, "sought": "", "kept_state": "", **values},
    )
    return HTMLResponse(html, status_code=status)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that one of our own pages sent.

    Raises:
        Refused: it is not from one of our pages, too large, or does not come.
    """
    fields = await fields_of(request)
    page_of(request).access.check_meant(request, identity_of(request), fields.get("form_token", ""))
    return fields


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a form, of whatever page of ours.

    Raises:
        Refused: another site sent it, it is too large, or does not come.
    """
    access.check_same_site(request)
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_FORM_BYTES:
                    raise access.Refused(413, f"expected a form of at most {MOST_FORM_BYTES} bytes")
    except TimeoutError as error:
        raise access.Refused(408, f"expected the form within {FORM_SECONDS:g} s") from error
    return {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
