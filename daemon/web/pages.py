"""What the page answers to GET: the overview, what was refused, verdicts, a job with its pictures and files, health."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)

from braingemma.explain.pictures import AXIS, Plane
from daemon.assemble.index import notes_on_study
from daemon.config.load import without_password
from daemon.database.engine import open_index
from daemon.database.tables import FINAL_STATES, RETRIED_STATES, JobState
from daemon.errors import DaemonError
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists import overview
from daemon.jobs.lists.worklist import Asked, study_of, worklist
from daemon.jobs.reviews import all_reviews, count_reviews, reviews_of
from daemon.jobs.store import Job
from daemon.jobs.study import study_rows
from daemon.pipeline.verified import verifies
from daemon.pull.store import unfinished
from daemon.web import exposition, views
from daemon.web.context import Page, form_of, identity_of, page_of, render
from daemon.web.slices import PLANES, Stack, first_plane

ROWS = 50
"""Jobs on a page."""
LONGEST_SOUGHT = 200
"""Characters of what is typed to find a study."""

CHUNK = 1 << 20
"""Bytes of an archive that are sent at once."""

FILE_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""For a job's own `report.html`, which brings its style and pictures with it."""


class NotThere(DaemonError):
    """What was asked for does not exist."""

    http_status = 404


def _unchanged_or(request: Request, response: Response) -> Response:
    """304 where the browser has this very page already."""
    tag = f'"{hashlib.sha256(bytes(response.body)).hexdigest()[:32]}"'
    response.headers["ETag"] = tag
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return response


def job_list(request: Request) -> Response:
    """What has arrived, what is worked on, what waits for which destination, and the worklist."""
    asked = request.query_params
    return _unchanged_or(request, _job_list(request, "", asked.getlist("state"), _page_number(asked)))


async def search(request: Request) -> Response:
    """The same with the jobs that are sought; asked for by a form, so that no name or UID stands in an address."""
    fields = await form_of(request)
    sought = fields.get("q", "").strip()[:LONGEST_SOUGHT]
    number = _page_number(fields)
    return await run_in_threadpool(_job_list, request, sought, [fields.get("state", "")], number)


def _job_list(request: Request, sought: str, states: Sequence[str], number: int) -> HTMLResponse:
    page = page_of(request)
    chosen = [JobState(s) for s in states if s in list(JobState)]
    asked = Asked(sought, chosen, by_identity=identity_of(request).sees_names)
    rows = worklist(page.engine, asked, limit=ROWS + 1, offset=(number - 1) * ROWS)
    counts = overview.count_by_state(page.engine)
    at_work = overview.jobs_page(page.engine, [JobState.RUNNING], limit=20)
    configured = [d.name for d in page.settings.destinations]
    backlogs = overview.backlogs(page.engine)
    return render(
        request,
        "overview.html",
        sought=sought,
        kept_state=chosen[0] if chosen else "",
        counts=counts,
        total=sum(counts.values()),
        arriving=overview.arriving(open_index(page.settings, page.engine)),
        configured=configured,
        pause=page.store.paused(),
        viewer=functools.partial(views.viewer_link, page.settings.web.viewer_url, named=asked.by_identity),
        at_work=[(job, views.steps_of(job)) for job in at_work],
        backlogs=backlogs,
        idle_destinations=[name for name in configured if name not in {b.destination for b in backlogs}],
        pulls=unfinished(page.engine),
        rows=rows[:ROWS],
        more=len(rows) > ROWS,
        number=number,
        chosen=chosen,
        obstacles=page.health.obstacles(),
        database=without_password(page.settings.engine.database_url) or "SQLite",
    )


def refused(request: Request) -> Response:
    """Series that were not reported, each with the rules that it broke."""
    page, number = page_of(request), _page_number(request.query_params)
    found = overview.refused_series(page.engine, limit=ROWS + 1, offset=(number - 1) * ROWS)
    return _unchanged_or(
        request, render(request, "refused.html", series=found[:ROWS], more=len(found) > ROWS, number=number)
    )


def reviews(request: Request) -> Response:
    """Readers' verdicts, counted and listed."""
    page = page_of(request)
    return render(
        request, "reviews.html", counts=count_reviews(page.engine), reviews=list(all_reviews(page.engine))[::-1][:ROWS]
    )


def reviews_export(request: Request) -> Response:
    """Verdicts as JSONL, for training."""
    page = page_of(request)
    page.audit.write("reviews_exported", by=identity_of(request).named)

    def lines() -> Iterator[str]:
        for review in all_reviews(page.engine):
            yield json.dumps(review.to_json(), ensure_ascii=False) + "\n"

    return StreamingResponse(
        lines(),
        media_type="application/x-ndjson",
        headers={"Content-Disposition": 'attachment; filename="braingemma-reviews.jsonl"'},
    )


def job(request: Request) -> Response:
    """One job: report, findings, pictures, warnings, timings, provenance, files."""
    page, found, identity = page_of(request), _job(request), identity_of(request)
    folder = page.files.fetch(found.job_id)
    report = views.report_of(folder)
    stack = _stack(page, folder) if folder.volume.exists() else None
    plane = _plane(request, stack)
    point = _point(request, stack, plane)
    index = point[AXIS[plane]]
    response = render(
        request,
        "job.html",
        banner=page.synthetic_banner if report is None else report.banner,  # other weights may be at work by now
        job=found,
        ended=found.state in FINAL_STATES,
        can_retry=found.state in RETRIED_STATES,
        steps=views.steps_of(found),
        study=study_rows(folder),
        viewer=views.viewer_link(
            page.settings.web.viewer_url, found, study_of(page.engine, found.job_id), named=identity.sees_names
        ),
        arrival=views.arrival_of(folder),
        arrival_notes=notes_on_study(open_index(page.settings, page.engine), found.study_uid),
        report=report,
        verdicts=page.store.verdicts(job_id=found.job_id),
        replaced_by=overview.replaced_by(page.engine, found.job_id),
        verifies=verifies(page.settings, by_proxy=identity.how == "proxy", reader=identity.user),
        organization=page.settings.review.organization,
        destinations=views.destinations_of(page.store.deliveries(found.job_id)),
        files=views.result_files_of(folder),
        reviews=reviews_of(page.engine, found.job_id),
        stack=stack,
        planes=PLANES,
        plane=plane,
        index=index,
        point=point,
        axis=AXIS,
        position=stack.position(plane, index) if stack is not None else "",
        positions=json.dumps(_positions(stack)) if stack is not None else "{}",
        revision=f"{found.state in FINAL_STATES}-{folder.report_json.exists()}-{stack is not None}",
    )
    return _unchanged_or(request, response)


def grey_slice(request: Request) -> Response:
    """One slice of the FLAIR."""
    stack, plane, index = _slice(request)
    return Response(stack.grey_png(plane, index), media_type="image/png")


def map_slice(request: Request) -> Response:
    """One slice of the saliency, transparent where it is nothing."""
    stack, plane, index = _slice(request)
    return Response(stack.map_png(plane, index), media_type="image/png")


def download(request: Request) -> Response:
    """One result file."""
    page, found = page_of(request), _job(request)
    folder, path = page.files.fetch(found.job_id), request.path_params["path"]
    known = {file.path for file in views.result_files_of(folder)}
    if path not in known or not views.is_inside(folder.root, path):
        raise NotThere(f"job {found.job_id} has no file {path!r}")
    page.audit.write("downloaded", by=identity_of(request).named, job=found.job_id, file=path)
    if path.endswith(".html"):
        return FileResponse(folder.root / path, headers={"Content-Security-Policy": FILE_POLICY})
    name = f"{found.job_id}-{path.replace('/', '-')}"
    return FileResponse(folder.root / path, filename=name)


def archive(request: Request) -> Response:
    """All result files of a job in one archive, made while it is sent: it takes no room on the disk."""
    page, found = page_of(request), _job(request)
    folder = page.files.fetch(found.job_id)
    page.audit.write("downloaded", by=identity_of(request).named, job=found.job_id, file="all")
    headers = {"Content-Disposition": f'attachment; filename="{found.job_id}.zip"'}
    return StreamingResponse(_zipped(folder, found.job_id), media_type="application/zip", headers=headers)


class _Outgoing(io.RawIOBase):
    """What a ZipFile writes, to be taken out piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def _zipped(folder: JobFolder, name: str) -> Iterator[bytes]:
    out = _Outgoing()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        for result in views.result_files_of(folder):
            entry = zipfile.ZipInfo.from_file(folder.root / result.path, f"{name}/{result.path}")
            with (folder.root / result.path).open("rb") as source, packed.open(entry, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield out.take()
            yield out.take()
    yield out.take()


def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    page = page_of(request)
    return Response(
        exposition.exposition(page.settings, page.engine, page.service_pid, page.service_metrics()),
        media_type="text/plain; version=0.0.4; charset=utf-8",
    )


def healthz(request: Request) -> Response:
    """200: every part of the service runs and work goes on; 503: start it again, or look what holds it up."""
    health = page_of(request).health
    faults = health.faults() + health.stalled()
    return PlainTextResponse("".join(f"{fault}\n" for fault in faults) or "alive\n", 503 if faults else 200)


def readyz(request: Request) -> Response:
    """200: studies can be taken; 503: they cannot, and why."""
    obstacles = page_of(request).health.obstacles()
    return JSONResponse({"ready": not obstacles, "obstacles": obstacles}, 503 if obstacles else 200)


def _job(request: Request) -> Job:
    found = page_of(request).store.get(request.path_params["job_id"])
    if found is None:
        raise NotThere("there is no such job: it may have been removed when its time was over")
    return found


def _page_number(fields: Mapping[str, str]) -> int:
    asked = fields.get("page", "1")
    return max(1, int(asked)) if asked.isdecimal() and len(asked) < 8 else 1


def _stack(page: Page, folder: JobFolder) -> Stack:
    return page.stacks.get(folder.volume, folder.explain / "saliency.nii.gz")


def _plane(request: Request, stack: Stack | None) -> Plane:
    asked = request.query_params.get("plane", "")
    for plane in PLANES:
        if plane == asked:
            return plane
    return first_plane(stack) if stack is not None else "axial"


def _point(request: Request, stack: Stack | None, plane: Plane) -> list[int]:
    """The voxel that is shown: `at`, else the map's peak; `slice` moves it along the plane's axis."""
    if stack is None:
        return [0, 0, 0]
    point = list(stack.peak)
    asked = request.query_params.get("at", "").split(",")
    if len(asked) == len(point) and all(a.isdecimal() and len(a) < 6 for a in asked):
        point = [min(int(a), n - 1) for a, n in zip(asked, stack.volume.shape, strict=True)]
    index = request.query_params.get("slice", "")
    if index.isdecimal() and len(index) < 6 and int(index) < stack.count(plane):
        point[AXIS[plane]] = int(index)
    return point


def _positions(stack: Stack) -> dict[str, list[str]]:
    """Where each slice lies, by plane."""
    return {plane: [stack.position(plane, i) for i in range(stack.count(plane))] for plane in PLANES}


def _slice(request: Request) -> tuple[Stack, Plane, int]:
    page, found = page_of(request), _job(request)
    folder = page.files.fetch(found.job_id)
    if not folder.volume.exists():
        raise NotThere("the job has no volume yet")
    stack = _stack(page, folder)
    plane = next((p for p in PLANES if p == request.path_params["plane"]), None)
    index = request.path_params["index"]
    if plane is None or index >= stack.count(plane):
        raise NotThere("there is no such slice")
    return stack, plane, index
