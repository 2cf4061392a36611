"""Step "select": every series of the input judged, and the FLAIR that is reported chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from daemon.errors import Permanent, Rejected
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Selection, SeriesVerdict, UnreadFile
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.picture import look_at
from dicom_io.select.selection import GEOMETRY, SelectionRules, Verdict, rank
from dicom_io.series.group import FileProblem, Series, contrasts, scan_folder
from dicom_io.series.studies import of_one_study

BY_PICTURE = "the headers do not say that this series is a FLAIR: it was taken for one by its picture"


def select(context: Context, folder: JobFolder) -> None:
    """Judge every series of `input/`, and choose the FLAIR that is reported.

    Raises:
        Rejected: no series is a brain FLAIR; `selection.json` says why for each.
        SeriesError: there are studies of several patients or days, and none was named.
    """
    scan = scan_folder(folder.input)
    rules = context.settings.selection
    candidates = of_one_study(scan.series, folder.study_uid)
    ranked = rank(candidates, SelectionRules(include=rules.include, exclude=rules.exclude), look_at)
    best: dict[str, tuple[Series, Verdict]] = {}  # of each UID, under which several acquisitions may have come
    for series, verdict in ranked:
        if verdict.accepted:
            best.setdefault(series.series_uid, (series, verdict))
    selection = Selection(
        chosen=next(iter(best), None),
        further=tuple(best)[1:],
        parts={uid: series.part for uid, (series, _) in best.items() if series.part},
        series=tuple(
            SeriesVerdict(
                series_uid=verdict.series_uid,
                verdict="accepted" if verdict.accepted else "refused",
                reasons=tuple(reason.line for reason in verdict.reasons),
                description=series.description,
                number=series.number,
                instances=len(series.files),
                part=series.part,
                joined=series.series_uids if len(series.series_uids) > 1 else (),
            )
            for series, verdict in ranked
        ),
        by_picture=tuple(uid for uid, (_, verdict) in best.items() if verdict.by_picture),
        problems=tuple(UnreadFile(file=p.path.name, reason=p.reason) for p in scan.problems),
    )
    selection.write(folder.selection)
    if selection.chosen is None:
        raise Rejected(_why_none(ranked, scan.problems, folder.input))
    _check_one_patient(best[selection.chosen][0], candidates)


def chosen_series(folder: JobFolder) -> Series:
    """The series that `select` chose, read again from its files."""
    selection = Selection.read(folder.selection)
    chosen, part = selection.chosen, selection.parts.get(selection.chosen or "", 0)
    for series in scan_folder(folder.input).series:
        if series.series_uid == chosen and folder.study_uid in (None, series.study_uid):
            found = next((one for one in contrasts(series) if one.part == part), series)
            taken_by_picture = series.series_uid in selection.by_picture
            return replace(found, notes=(*found.notes, BY_PICTURE)) if taken_by_picture else found
    raise Permanent(f"{folder.input}: the chosen series {chosen} is no longer there")


def _check_one_patient(chosen: Series, all_series: Sequence[Series]) -> None:
    """Refuse a study whose series name different patients: nobody here can know which of them it is.

    Raises:
        Rejected: it does.
    """
    found = {i for s in all_series if s.study_uid == chosen.study_uid for i in s.distinct("PatientID")}
    if len(found) > 1:
        shown = ", ".join(repr(i) for i in sorted(found))
        raise Rejected(f"study {chosen.study_uid}: expected one PatientID, got {len(found)}: {shown}")


def _why_none(ranked: Sequence[tuple[Series, Verdict]], problems: Sequence[FileProblem], folder: Path) -> str:
    unread = ""
    if problems:
        unread = f"; {len(problems)} files take no part; the first: {problems[0].path.name}: {problems[0].reason}"
    if not ranked:
        return f"expected DICOM instances of at least one image series in {folder}, found none{unread}"
    broken = [(s, v) for s, v in ranked if {reason.rule for reason in v.refusals} == {GEOMETRY}]
    if broken:  # a FLAIR in all else: what it lacks is what a person must know
        said = [f"{_called(series)}: {verdict.refusals[0].detail}" for series, verdict in broken]
        return (
            f"a brain FLAIR came, but its images make no whole volume: {' | '.join(said)}; what comes later of the "
            f"study is reported by itself{unread}"
        )
    refusals = []
    for series, verdict in ranked:
        failed = "; ".join(f"{reason.rule}: {reason.detail}" for reason in verdict.refusals)
        refusals.append(f"series {series.series_uid}: {failed}")
    return f"no brain FLAIR among {len(ranked)} series: " + " | ".join(refusals) + unread


def _called(series: Series) -> str:
    number = "" if series.number is None else f" {series.number}"
    return f"series{number} {series.description!r} ({len(series.files)} images)"
