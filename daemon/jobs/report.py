"""`report.json`, `report.txt` and `report.html`: one dictionary, written in three forms."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from daemon.files import read_json, write_durably, write_json
from daemon.jobs.folder import JobFolder
from dicom_io.content.report import RESEARCH_USE_LINE

INTENDED_USE = (
    "Research, teaching and prototyping only. Not for diagnosis, not for emergencies, not cleared by any authority. "
    "Written by a model in English only; models of this kind were trained mainly on glioblastoma and may be wrong "
    "about anything, the side included. Every statement must be checked by a radiologist."
)
"""What the report may be used for, and the limits of the model."""

PICTURES = (
    (
        "lime_2x3_grid.png",
        "Three planes, without and with the overlay: red supports the findings, blue speaks against them",
    ),
    ("lime_top_supervoxels_grid.png", "The supervoxels with the largest weights"),
    ("overlay_slices.png", "Every slice with the overlay"),
)
"""Pictures of the explanation with their captions, in the order of the page."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(folder: JobFolder, report: Mapping[str, Any]) -> None:
    """Write all three forms of `report` (see `docs/report-json.md` for its keys)."""
    write_json(folder.report_json, dict(report))
    write_durably(folder.report_text, report_text(report).encode())
    write_durably(folder.report_html, report_html(folder, report).encode())


def read_report(folder: JobFolder) -> dict[str, Any]:
    """What `write_report` wrote last."""
    return dict(read_json(folder.report_json))


def finding_line(finding: Mapping[str, Any]) -> str:
    """One finding in words, for people."""
    name = str(finding["finding"]).replace("_", " ")
    words = [finding["laterality"] or "", ", ".join(finding["sites"])]
    place = " ".join(word for word in words if word)
    confidence = finding.get("confidence")
    sure = "" if confidence is None else f" (confidence {confidence:.0%})"
    return f"{name}: {finding['presence']}{f', {place}' if place else ''}{sure}"


def findings_line(findings: Sequence[Mapping[str, Any]]) -> str:
    """What is present, in one line for a list of many reports."""
    parts = []
    for finding in findings:
        if finding["presence"] == "present":
            words = [
                str(finding["finding"]).replace("_", " "),
                finding["laterality"] or "",
                ", ".join(finding["sites"]),
            ]
            parts.append(" ".join(word for word in words if word))
    return "; ".join(parts) or "nothing stated as present"


def report_text(report: Mapping[str, Any]) -> str:
    """The report as plain text, with the research-use line first."""
    lines = [RESEARCH_USE_LINE]
    if report["banner"]:
        lines.append(str(report["banner"]))
    lines += ["", report["report"], "", "Findings read from the text:"]
    lines += [f"  {finding_line(finding)}" for finding in report["findings"]]
    if report["warnings"]:
        lines += ["", "Warnings:", *(f"  {warning}" for warning in report["warnings"])]
    lines += ["", report["intended_use"], ""]
    return "\n".join(lines)


def report_html(folder: JobFolder, report: Mapping[str, Any]) -> str:
    """One page that needs no other file: pictures are inside as data URLs."""
    pictures = [
        (caption, base64.b64encode(path.read_bytes()).decode())
        for name, caption in PICTURES
        if (path := folder.explain / name).exists()
    ]
    page = _TEMPLATES.get_template("report.html")
    return page.render(
        report=report,
        research_use=RESEARCH_USE_LINE,
        pictures=pictures,
        finding_line=finding_line,
        rows=provenance_rows(report),
    )


def provenance_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flat (name, value) rows of everything that the report was made from."""
    rows: list[tuple[str, str]] = []
    for section in ("input", "model", "explain"):
        for key, value in (report[section] or {}).items():
            if key == "checks":
                words = {True: "passed", False: "NOT PASSED", None: "not known"}
                rows += [(f"check: {c['name']}", f"{words[c['passed']]}: {c['detail']}") for c in value]
            elif isinstance(value, Mapping):
                rows += [(f"{section}: {key}: {name}", _plain(inner)) for name, inner in value.items()]
            else:
                rows.append((f"{section}: {key}", _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)
