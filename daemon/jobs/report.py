"""`report.json`, `report.txt` and `report.html`: one record, written in three forms."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from daemon.files import write_durably
from daemon.jobs.comparison import comparison_lines
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Measurement, Report, ReportFinding
from daemon.jobs.study import study_rows
from dicom_io.content.report import LESION_VOLUME, RESEARCH_USE_LINE, in_words, nothing_present

INTENDED_USE = (
    "Research, teaching and prototyping only. Not for diagnosis, not for emergencies, not cleared by any authority. "
    "Written by a model in English only; models of this kind were trained mainly on glioblastoma and may be wrong "
    "about anything, the side included. Every statement must be checked by a radiologist."
)
"""What the report may be used for, and the limits of the model."""

SMALL_LESIONS = (
    "These demo weights miss most lesions below 4 ml, and about one in nine of those from 4 to 20 ml "
    "(measured on drawn heads)."
)
"""What results of the bundled demo weights say of their limits, as measured: it is not said of other weights."""

PICTURES = (
    (
        "lime_2x3_grid.png",
        "Three planes, without and with the overlay: red supports the findings, blue speaks against them",
    ),
    ("lime_top_supervoxels_grid.png", "The supervoxels with the largest weights"),
    ("overlay_slices.png", "Every slice with the overlay"),
)
"""Pictures of the explanation with their captions, in the order of the page."""
PICTURE_SIZE = (1600, 4000)
"""Most pixels, width and height, of a picture on the page."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(folder: JobFolder, report: Report, *, named: bool = True) -> None:
    """Write all three forms of `report` (see `docs/report-json.md` for its fields).

    Args:
        folder: The job's.
        report: What to write.
        named: Whether the page says whose study it is; not where results are to go without identities.
    """
    report.write(folder.report_json)
    write_durably(folder.report_text, report_text(report).encode())
    write_durably(folder.report_html, report_html(folder, report, named=named).encode())


def read_report(folder: JobFolder) -> Report:
    """What `write_report` wrote last."""
    return Report.read(folder.report_json)


def finding_line(finding: ReportFinding) -> str:
    """One finding in words, for people."""
    place = _place(finding)
    sure = "" if finding.confidence is None else f" (confidence {finding.confidence:.0%})"
    return f"{_name(finding)}: {finding.presence}{f', {place}' if place else ''}{sure}"


def impression(report: Report) -> list[str]:
    """The report in a few lines: what is present, what is not, what was measured, what changed."""
    none = nothing_present(finding.presence for finding in report.findings)
    said = [*([none] if none else []), *map(finding_line, report.findings)]
    compared = [] if report.comparison is None else comparison_lines(report.comparison)
    return [*said, *measurement_lines(report), *compared]


def measurement_lines(report: Report) -> list[str]:
    """What was measured, what is only possible, and what could not be measured, in words."""
    possible = possible_lesion(report)
    lacking = [f"{m.name.replace('_', ' ')}: not measured, {m.reason}" for m in report.unmeasured]
    return [*map(measurement_line, report.measurements), *([possible] if possible else []), *lacking]


def possible_lesion(report: Report) -> str:
    """The lesion that only the second look shows, in words; empty where there is none."""
    found = report.lesion_estimate
    if found is None or found.certainty != "possible":
        return ""
    place = " ".join(word for word in (found.laterality or "", ", ".join(found.sites)) if word)
    size = "less than 1 mL" if found.volume_ml < 1 else f"about {found.volume_ml:.0f} mL"
    return f"possible lesion, {place}: {size}, seen only with brightness stretched (second look)"


def measurement_line(measured: Measurement) -> str:
    """One measurement in words, for people."""
    name = measured.name.replace("_", " ")
    side = "" if measured.laterality is None or measured.laterality in name.split() else f", {measured.laterality}"
    return f"{name}{side}: {measured.value:.4g} {measured.unit}, estimated by image processing ({measured.method})"


def finding_rows(report: Report) -> list[tuple[ReportFinding, str]]:
    """Each finding with what was measured of it, in words; a dash where nothing was."""
    sizes = [f"{m.value:.4g} {m.unit}" for m in report.measurements if m.name == LESION_VOLUME]
    return [
        (f, sizes[0] if sizes and f.finding == "lesion" and f.presence == "present" else "–") for f in report.findings
    ]


def findings_line(findings: Sequence[ReportFinding]) -> str:
    """What is present, in one line for a list of many reports."""
    present = [finding for finding in findings if finding.presence == "present"]
    unsure = any(finding.presence == "undetermined" for finding in findings)
    none = f"nothing {'confirmed' if unsure else 'stated'} as present"
    return "; ".join(f"{_name(f)} {_place(f)}".strip() for f in present) or none


def _name(finding: ReportFinding) -> str:
    return finding.finding.replace("_", " ")


def _place(finding: ReportFinding) -> str:
    """Side and sites; empty where the text states none."""
    return " ".join(word for word in (finding.laterality or "", ", ".join(finding.sites)) if word)


def report_text(report: Report) -> str:
    """The report as plain text, with the research-use line first."""
    lines = [RESEARCH_USE_LINE]
    if report.banner:
        lines.append(report.banner)
    lines += ["", report.report, "", "Findings read from the text:"]
    lines += [f"  {finding_line(finding)}" for finding in report.findings]
    if report.comparison is not None:
        lines += ["", "Comparison:", *(f"  {line}" for line in comparison_lines(report.comparison))]
    if measured := measurement_lines(report):
        lines += ["", "Measured:", *(f"  {line}" for line in measured)]
    if report.warnings:
        lines += ["", "Warnings:", *(f"  {warning}" for warning in report.warnings)]
    lines += ["", report.intended_use, ""]
    return "\n".join(lines)


def report_html(folder: JobFolder, report: Report, *, named: bool = True) -> str:
    """One page that needs no other file: pictures are inside as data URLs."""
    pictures = [
        (caption, "webp", _embedded(path)) for name, caption in PICTURES if (path := folder.explain / name).exists()
    ]
    page = _TEMPLATES.get_template("report.html")
    return page.render(
        report=report,
        research_use=RESEARCH_USE_LINE,
        pictures=pictures,
        study=study_rows(folder) if named else [],
        impression=impression(report),
        finding_rows=finding_rows(report),
        rows=provenance_rows(report),
    )


def _embedded(picture: Path) -> str:
    """A picture as the page holds it, base64: smaller than the file, so that the page can be sent by mail."""
    with Image.open(picture) as image:
        shown = image.convert("RGB")
    shown.thumbnail(PICTURE_SIZE)
    compressed = io.BytesIO()
    shown.save(compressed, "WEBP", quality=75)
    return base64.b64encode(compressed.getvalue()).decode()


def provenance_rows(report: Report) -> list[tuple[str, str]]:
    """Flat (name, value) rows of everything that the report was made from."""
    words = {True: "passed", False: "NOT PASSED", None: "not known"}
    rows: list[tuple[str, str]] = []
    explained = {} if report.explain is None else report.explain.facts
    for section, facts in (
        ("input", report.input.to_json()),
        ("model", report.model.to_json()),
        ("explain", explained),
    ):
        facts.pop("checks", None)
        rows += [row for key, value in facts.items() for row in _rows(f"{section}: {key}", value)]
    rows += [(f"check: {check.name}", f"{words[check.passed]}: {check.detail}") for check in report.input.checks]
    return rows


def _rows(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [(f"{name}: {inner}", in_words(said)) for inner, said in value.items()]
    return [(name, in_words(value))]
