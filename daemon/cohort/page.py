"""Cases of a batch as one page: sorted and filtered in the browser, self-contained, with a slice of each case."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from braingemma.findings.vocabulary import FINDINGS
from daemon.errors import Rejected
from daemon.files import write_durably
from daemon.jobs.folder import JobFolder
from daemon.web.slices import load_stack
from dicom_io.content.report import RESEARCH_USE_LINE

SIDE = 160
"""Pixels of a thumbnail's longer side."""
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(rows: Sequence[Mapping[str, Any]], out: Path, banner: str | None) -> None:
    """Write `index.html` of a batch's folder.

    Args:
        rows: Of `table.rows_of`.
        out: The batch's folder.
        banner: What must be said about the weights; None for nothing.
    """
    shown = [{**row, "picture": _thumbnail(out / str(row["folder"])), "page": _page(out, row)} for row in rows]
    html = _TEMPLATES.get_template("index.html").render(
        rows=shown, findings=FINDINGS, banner=banner, research_use=RESEARCH_USE_LINE
    )
    write_durably(out / "index.html", html.encode())


def _page(out: Path, row: Mapping[str, Any]) -> str:
    page = Path(str(row["folder"])) / "report.html"
    return str(page) if (out / page).exists() else ""


def _thumbnail(root: Path) -> str:
    """An axial slice with the map on it, as a data URL; empty where there is no volume."""
    folder = JobFolder(root)
    if not folder.volume.exists():
        return ""
    saliency = folder.explain / "saliency.nii.gz"
    try:
        stack = load_stack(folder.volume, saliency if saliency.exists() else None)
    except Rejected:
        return ""
    index = stack.strongest("axial")
    picture = Image.open(io.BytesIO(stack.grey_png("axial", index))).convert("RGBA")
    if stack.saliency is not None:
        picture.alpha_composite(Image.open(io.BytesIO(stack.map_png("axial", index))))
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
