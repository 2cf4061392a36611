"""Cases of a batch as a table: CSV and Parquet, one row a case."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from braingemma.findings.vocabulary import FINDINGS
from daemon.cohort.batch import CASE_FILE, CaseRecord
from daemon.files import write_durably
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report, ReportFinding

_MEASURED = {
    "lesion_volume_ml": "lesion_volume",
    "midline_shift_mm": "midline_shift",
    "ventricle_volume_left_ml": "ventricle_volume_left",
    "ventricle_volume_right_ml": "ventricle_volume_right",
}
COLUMNS: dict[str, type] = {
    "case": str, "patient_id": str, "study_uid": str, "series_uid": str, "status": str, "reason": str,
    "manufacturer": str, "model_name": str, "field_strength_t": float, "spacing_mm": str,
    **{
        f"{finding}_{what}": float if what == "confidence" else str
        for finding in FINDINGS
        for what in ("presence", "laterality", "sites", "confidence")
    },
    "lesion_volume_ml": float, "midline_shift_mm": float, "midline_shift_side": str,
    "ventricle_volume_left_ml": float, "ventricle_volume_right_ml": float,
    "earlier_case": str, "lesion_change": str, "lesion_change_ml": float, "lesion_change_uncertainty_ml": float,
    "warnings": str, "folder": str,
}  # fmt: skip
"""Columns of `cases.csv` and `cases.parquet`; sites and warnings are joined by "; "."""

Row = dict[str, Any]


def rows_of(out: Path) -> list[Row]:
    """A row for each case of a batch's folder, in the order of their names; what is not known is None."""
    return [_row(record, JobFolder(folder), out) for folder, record in _records(out)]


def _records(out: Path) -> Iterator[tuple[Path, CaseRecord]]:
    for file in sorted((out / "cases").glob(f"*/{CASE_FILE}")):
        yield file.parent, CaseRecord.read(file)


def _row(record: CaseRecord, folder: JobFolder, out: Path) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row |= {name: value for name, value in record.to_json().items() if name in COLUMNS and value not in ("", None)}
    row["folder"] = str(folder.root.relative_to(out))
    report = Report.read_if_there(folder.report_json) if record.status == "reported" else None
    return row if report is None else row | _said(report)


def _said(report: Report) -> Row:
    by_name = {finding.finding: finding for finding in report.findings}
    measured = {m.name: m for m in report.measurements}
    row: Row = {"spacing_mm": "x".join(f"{size:g}" for size in report.input.spacing_mm)}
    for name in FINDINGS:
        row |= _finding(name, by_name.get(name))
    for column, name in _MEASURED.items():
        row[column] = measured[name].value if name in measured else None
    row["midline_shift_side"] = measured["midline_shift"].laterality if "midline_shift" in measured else None
    if report.comparison is not None:
        row["earlier_case"], row["lesion_change"] = report.comparison.job_id, report.comparison.stated
        row["lesion_change_ml"] = report.comparison.change_ml
        row["lesion_change_uncertainty_ml"] = report.comparison.uncertainty_ml
    row["warnings"] = "; ".join(report.warnings) or None
    return row


def _finding(name: str, finding: ReportFinding | None) -> Row:
    if finding is None:
        return {}
    return {
        f"{name}_presence": finding.presence,
        f"{name}_laterality": finding.laterality,
        f"{name}_sites": "; ".join(finding.sites) or None,
        f"{name}_confidence": finding.confidence,
    }


def write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """UTF-8 with a header line, as RFC 4180 has it; what is not known is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    write_durably(file, text.getvalue().encode())


def write_parquet(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The same columns with their types; what is not known is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.float64() if kind is float else pa.string()) for name, kind in COLUMNS.items()])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_durably(file, sink.getvalue().to_pybytes())
