"""What a person may do on the page, each in the audit log: jobs, verdicts, destinations, the queue."""

from __future__ import annotations

import logging

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from daemon.assemble.index import complete_now
from daemon.config.sections import Destination
from daemon.database.engine import open_index
from daemon.database.tables import PullState
from daemon.deliver.client import client_for
from daemon.errors import DaemonError
from daemon.jobs.lists.overview import with_dead_letter
from daemon.jobs.reviews import add_review
from daemon.observe.metrics import READER_VERDICTS
from daemon.pipeline import actions
from daemon.pipeline.verified import VERIFYING, check_verifiable, send_verified, verifies
from daemon.pull.store import PullStore
from daemon.web.context import form_of, identity_of, page_of, render

log = logging.getLogger(__name__)

MOST_RETRIED = 1000
"""Jobs that are sent again by one request."""


class NotConfigured(DaemonError):
    """Nothing of this name is in the configuration."""

    http_status = 404


async def retry(request: Request) -> Response:
    """Start a job that has ended again."""
    await form_of(request)
    page, job_id = page_of(request), request.path_params["job_id"]
    started = await run_in_threadpool(actions.retry, page.store, page.engine, job_id)
    page.audit.note("retried", by=identity_of(request).named, job=job_id, what=started)
    return RedirectResponse(f"/jobs/{job_id}", 303)


async def retry_delivery(request: Request) -> Response:
    """Send again what one destination was given up for."""
    await form_of(request)
    page, job_id, name = page_of(request), request.path_params["job_id"], request.path_params["name"]
    started = await run_in_threadpool(actions.retry_delivery, page.store, page.engine, job_id, name)
    page.audit.note("retried", by=identity_of(request).named, job=job_id, what=started)
    return RedirectResponse(f"/jobs/{job_id}#delivery", 303)


async def retry_destination(request: Request) -> Response:
    """Send again everything that a destination was given up for, up to `MOST_RETRIED` jobs at once."""
    await form_of(request)
    page, destination = page_of(request), _destination(request)

    def send_again() -> None:
        for job_id in with_dead_letter(page.engine, destination.name, limit=MOST_RETRIED):
            try:
                started = actions.retry_delivery(page.store, page.engine, job_id, destination.name)
            except DaemonError as error:  # it is at work again, or somebody else was quicker
                log.info("job %s is not retried: %s", job_id, error)
                continue
            page.audit.note("retried", by=identity_of(request).named, job=job_id, what=started)

    await run_in_threadpool(send_again)
    return RedirectResponse("/", 303)


async def test_destination(request: Request) -> Response:
    """Ask a destination for a sign of life, as deliveries reach it."""
    await form_of(request)
    page, destination = page_of(request), _destination(request)
    client = client_for(destination, page.settings.listener.ae_title)
    try:
        await run_in_threadpool(client.echo)
    except DaemonError as error:
        trouble = str(error)
    else:
        trouble = ""
    page.audit.note("tested", by=identity_of(request).named, destination=destination.name, answers=not trouble)
    return render(request, "tested.html", destination=destination, asked=client.sign_of_life, trouble=trouble)


def _destination(request: Request) -> Destination:
    name = request.path_params["name"]
    found = next((d for d in page_of(request).settings.destinations if d.name == name), None)
    if found is None:
        raise NotConfigured(f"no destination is called {name!r} in the configuration")
    return found


async def pause(request: Request) -> Response:
    """Begin no further study for now."""
    await form_of(request)
    page, who = page_of(request), identity_of(request).named
    await run_in_threadpool(page.store.pause, who)
    page.audit.note("paused", by=who)
    return RedirectResponse("/", 303)


async def resume(request: Request) -> Response:
    """Go on with the queue."""
    await form_of(request)
    page = page_of(request)
    await run_in_threadpool(page.store.resume)
    page.audit.note("resumed", by=identity_of(request).named)
    return RedirectResponse("/", 303)


async def complete(request: Request) -> Response:
    """Hand a study over that still waits."""
    fields = await form_of(request)
    page, study_uid = page_of(request), fields.get("study", "")
    index = open_index(page.settings, page.engine)
    await run_in_threadpool(complete_now, index, study_uid)
    page.audit.note("completed", by=identity_of(request).named, study_uid=study_uid)
    return RedirectResponse("/", 303)


async def cancel(request: Request) -> Response:
    """Cancel a job that has not ended."""
    await form_of(request)
    page, job_id = page_of(request), request.path_params["job_id"]
    await run_in_threadpool(actions.cancel, page.store, job_id)
    page.audit.note("cancelled", by=identity_of(request).named, job=job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


async def pause_pull(request: Request) -> Response:
    """Let a pull fetch nothing more for now."""
    return await _change_pull(request, PullState.PAUSED)


async def resume_pull(request: Request) -> Response:
    """Let a paused pull go on."""
    return await _change_pull(request, PullState.RUNNING)


async def _change_pull(request: Request, state: PullState) -> Response:
    await form_of(request)
    page, pull_id = page_of(request), request.path_params["pull_id"]
    await run_in_threadpool(PullStore(page.engine).set_state, pull_id, state)
    page.audit.note("pull_changed", by=identity_of(request).named, pull=pull_id, state=str(state))
    return RedirectResponse("/", 303)


async def review(request: Request) -> Response:
    """Take a reader's verdict; where so configured, send the confirmed or edited report as a verified SR."""
    fields = await form_of(request)
    page, job_id = page_of(request), request.path_params["job_id"]
    identity = identity_of(request)

    def judge() -> None:
        job = actions.job_or_error(page.store, job_id)
        folder = page.files.fetch(job.job_id)
        verifying = fields.get("verdict") in VERIFYING and verifies(
            page.settings, by_proxy=identity.how == "proxy", reader=identity.user
        )
        if verifying:
            check_verifiable(job, folder)
        given = add_review(
            page.engine, folder, job_id,
            verdict=fields.get("verdict", ""), reader=identity.user,
            reason=fields.get("reason", ""), edited=fields.get("edited", ""),
        )  # fmt: skip
        READER_VERDICTS.labels(str(given.verdict)).inc()
        page.audit.note("reviewed", by=identity.named, job=job_id, verdict=str(given.verdict))
        if verifying:
            send_verified(page.settings, page.engine, page.store, page.files, job, given)
            page.audit.note("verified", by=identity.named, job=job_id)

    await run_in_threadpool(judge)
    return RedirectResponse(f"/jobs/{job_id}#review", 303)
