"""What a person may do on the page: retry, cancel, judge a report, each in the audit log."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from daemon.jobs.reviews import add_review
from daemon.observe.metrics import READER_VERDICTS
from daemon.pipeline import actions
from daemon.pipeline.verified import VERIFYING, check_verifiable, send_verified, verifies
from daemon.web.context import form_of, identity_of, page_of


async def retry(request: Request) -> Response:
    """Start a job that has ended again."""
    await form_of(request)
    page, job_id = page_of(request), request.path_params["job_id"]
    started = await run_in_threadpool(actions.retry, page.store, page.engine, job_id)
    page.audit.write("retried", by=identity_of(request).named, job=job_id, what=started)
    return RedirectResponse(f"/jobs/{job_id}", 303)


async def cancel(request: Request) -> Response:
    """Cancel a job that has not ended."""
    await form_of(request)
    page, job_id = page_of(request), request.path_params["job_id"]
    await run_in_threadpool(actions.cancel, page.store, job_id)
    page.audit.write("cancelled", by=identity_of(request).named, job=job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


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
        page.audit.write("reviewed", by=identity.named, job=job_id, verdict=str(given.verdict))
        if verifying:
            send_verified(page.settings, page.engine, page.store, page.files, job, given)
            page.audit.write("verified", by=identity.named, job=job_id)

    await run_in_threadpool(judge)
    return RedirectResponse(f"/jobs/{job_id}#review", 303)
