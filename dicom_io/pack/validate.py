"""The check of a pack before it is sent: what validators of the standard do not see, and those validators.

No validator notices a report without sections, or evidence of another study; these rules do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag

from dicom_io.content.equipment import is_own_result
from dicom_io.content.kind import ResultKind
from dicom_io.content.received_text import shown, stated, text_in
from dicom_io.content.report import ReportContent
from dicom_io.content.sources import Sources, read_sources
from dicom_io.errors import PackError
from dicom_io.header import quiet
from dicom_io.objects.case import maker_of
from dicom_io.objects.kinds import BY_NAME, KINDS
from dicom_io.objects.rules import Faults, value_faults
from dicom_io.objects.sr_rules import plain_text, report_faults
from dicom_io.pack.alike import apart
from dicom_io.pack.manifest import Pack, PackObject
from dicom_io.volume.geometry import SeriesGeometry

VALIDATORS = 4
"""Processes of dciodvfy at the same time, while we look at the headers ourselves."""


def check_pack(
    pack: Pack,
    *,
    source_files: Sequence[Path],
    geometry: SeriesGeometry,
    content: ReportContent | None = None,
    dciodvfy: bool = True,
) -> None:
    """Check every object of a pack against what was received; `encode_pack` has done so before the pack appears.

    Args:
        pack: The pack.
        source_files: Every received instance of the series.
        geometry: Geometry of the series.
        content: What the results were to say; None leaves the banner unchecked.
        dciodvfy: Also run `dciodvfy` where it is installed: on each object, but only on the first and the last
            where there is one for each slice: these differ in pixels and place only.

    Raises:
        PackError: every fault that was found, each with its file.
    """
    banner = content.banner if content is not None else None
    check_objects(pack, read_sources(source_files, geometry), geometry, banner=banner, dciodvfy=dciodvfy)


def check_objects(
    pack: Pack, received: Sources, geometry: SeriesGeometry, *, banner: str | None, dciodvfy: bool = True
) -> None:
    """As `check_pack`, with the headers of the sources at hand.

    Raises:
        PackError: every fault that was found, each with its file.
    """
    faults: list[str] = []
    if not pack.objects:
        faults.append("expected at least one object, found none")
    with ThreadPoolExecutor(VALIDATORS) as validators:
        asked = {item: validators.submit(dciodvfy_errors, item.path) for item in _representatives(pack) if dciodvfy}
        with quiet("pydicom"):  # a received label may be one that it does not know
            faults += _faults_of(pack, received, geometry, banner)
    if not faults:
        for item, answer in asked.items():
            errors = _our_errors(answer.result(), received, geometry)
            faults += [f"{item.path.name}: dciodvfy: {error}" for error in errors]
    if faults:
        raise PackError("; ".join(faults))


def _faults_of(pack: Pack, received: Sources, geometry: SeriesGeometry, banner: str | None) -> Faults:
    def all_of(item: PackObject) -> Faults:
        header = dcmread(item.path, stop_before_pixels=True)
        yield from _object_faults(item, header, received, geometry, pack)
        yield from _banner_faults(header, banner)

    for kind in KINDS:
        if kind.of_each_slice:
            yield from _slice_faults(kind, pack, received, geometry, all_of)
        else:
            yield from (f"{item.path.name}: {fault}" for item in pack.of_kind(kind.name) for fault in all_of(item))
    yield from _repeated_uids(pack)


def _slice_faults(
    kind: ResultKind,
    pack: Pack,
    received: Sources,
    geometry: SeriesGeometry,
    all_of: Callable[[PackObject], Faults],
) -> Faults:
    """Faults of instances that differ in a few attributes, as a rule: what was found of one holds for all like it."""
    looked_at: dict[int, bytes] | None = None
    images: list[Dataset] = []
    for item in pack.of_kind(kind.name):
        own, shared = apart(item.path, kind.own)
        images.append(own)
        if shared == looked_at:
            found = chain(
                value_faults(own, {"SOPInstanceUID": item.sop_instance_uid}), _reference_faults(own, received, pack)
            )
        else:
            found, looked_at = chain(all_of(item)), shared
        yield from (f"{item.path.name}: {fault}" for fault in found)
    yield from _series_faults(kind.name, images, geometry)


def check_sr(dataset: Dataset, sources: Sources) -> None:
    """Check one report document.

    Raises:
        PackError: every fault that was found.
    """
    faults = list(report_faults(dataset, sources.instances))
    if faults:
        raise PackError("; ".join(faults))


def dciodvfy_errors(path: Path) -> list[str]:
    """Lines that `dciodvfy` marks as errors; empty where it is not installed.

    Raises:
        PackError: it could not read the object at all.
    """
    tool = dciodvfy_path()
    if tool is None:
        return []
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, errors="replace", check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    if done.returncode != 0 and not errors:
        raise PackError(f"{path}: dciodvfy ended with {done.returncode}: {done.stderr.strip()[:200]}")
    return errors


def _our_errors(errors: list[str], sources: Sources, geometry: SeriesGeometry) -> list[str]:
    """Errors but for those about received identity: it stays as it came, or the PACS files the result elsewhere."""
    marks = [*sources.illegal_identity()]
    if geometry.frame_of_reference_uid == geometry.study_uid:
        marks.append(f"<{geometry.study_uid}>")
    return errors_without(errors, marks)


def errors_without(errors: list[str], marks: Sequence[str]) -> list[str]:
    """A validator's errors but for those that hold one of the marks, and for the summary where only those are left."""
    ours = [error for error in errors if not any(mark in error for mark in marks)]
    summary = "Error - Dicom dataset contains invalid data values for Value Representations"
    return [] if ours == [summary] and len(errors) > 1 else ours


def dciodvfy_path() -> str | None:
    """Where `dciodvfy` is: beside our Python, or on the path."""
    beside = Path(sys.executable).with_name("dciodvfy")
    return str(beside) if beside.is_file() else shutil.which("dciodvfy")


def _object_faults(
    item: PackObject, dataset: Dataset, sources: Sources, geometry: SeriesGeometry, pack: Pack
) -> Faults:
    yield from _identity_faults(item, dataset, sources, geometry)
    yield from _reference_faults(dataset, sources, pack)
    yield from maker_of(BY_NAME[item.kind]).faults(dataset, sources, geometry)


def _identity_faults(item: PackObject, dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Faults:
    expected = {
        "SOPClassUID": BY_NAME[item.kind].sop_class_uid,
        "Modality": BY_NAME[item.kind].modality,
        "SOPInstanceUID": item.sop_instance_uid,
        "SeriesInstanceUID": item.series_uid,
        "StudyInstanceUID": geometry.study_uid,
    }
    for keyword, value in expected.items():
        found = dataset.get(keyword)
        if str(found if found is not None else "") != str(value if value is not None else ""):
            yield f"{keyword}: expected {value!s}, found {found!s}"
    for keyword in ("SpecificCharacterSet", "PatientID", "PatientName", "AccessionNumber", "StudyID"):
        wanted, got = stated(sources.header, keyword), text_in(dataset, keyword, sources.header)
        if got != wanted:
            yield f"{keyword}: expected {shown(wanted)}, found {shown(got)}"
    if item.series_uid == geometry.series_uid:
        yield "SeriesInstanceUID: expected a series of its own, found the received one"
    if not is_own_result(dataset):
        yield "equipment: expected our own, so that the object is recognised when it comes back"


def _banner_faults(dataset: Dataset, banner: str | None) -> Faults:
    """Whoever opens one object alone must learn what the weights are not for."""
    if banner is None:
        return
    said = (
        plain_text(dataset)
        if "ContentSequence" in dataset
        else " ".join(str(dataset.get(keyword) or "") for keyword in ("ImageComments", "DocumentTitle"))
    )
    if " ".join(banner.split()) not in said:
        yield f"banner: expected {banner!r}, found none"


def _reference_faults(dataset: Dataset, sources: Sources, pack: Pack) -> Faults:
    """Whatever an object refers to must have been received or be in the pack; predecessors lie elsewhere."""
    known = set(sources.by_uid) | {item.sop_instance_uid for item in pack.objects}
    for uid in sorted(set(_referenced(dataset)) - known):
        yield f"reference to {uid}: expected a received instance or one of this pack"


def _referenced(dataset: Dataset) -> Iterator[str]:
    for tag in dataset.keys():  # noqa: SIM118 - iterating a dataset would decode every element
        if dataset.get_item(tag).VR != "SQ" or keyword_for_tag(tag) == "PredecessorDocumentsSequence":
            continue
        for item in dataset[tag].value:
            if "ReferencedSOPInstanceUID" in item:
                yield str(item.ReferencedSOPInstanceUID)
            yield from _referenced(item)


def _series_faults(kind: str, images: Sequence[Dataset], geometry: SeriesGeometry) -> Faults:
    """One image for each source slice, in its order, at its place."""
    if not images:
        return
    if len(images) != len(geometry.slices):
        yield f"{kind}: expected one image for each of {len(geometry.slices)} slices, found {len(images)}"
        return
    for number, (image, source) in enumerate(zip(images, geometry.slices, strict=True), start=1):
        shown = [item.ReferencedSOPInstanceUID for item in image.get("SourceImageSequence", [])]
        if shown != [source.sop_instance_uid]:
            yield f"{kind} {number}: expected its source to be {source.sop_instance_uid}, found {', '.join(shown)}"
    if geometry.frame_of_reference_uid is None:
        return
    places = [np.array(image.ImagePositionPatient, dtype=np.float64) @ geometry.normal for image in images]
    if any(later <= earlier for earlier, later in pairwise(places)):
        yield f"{kind}: expected images in the order of their places along the normal"


def _repeated_uids(pack: Pack) -> Faults:
    uids = [item.sop_instance_uid for item in pack.objects]
    for uid in sorted({uid for uid in uids if uids.count(uid) > 1}):
        yield f"SOPInstanceUID {uid}: expected on one object, found on {uids.count(uid)}"


def _representatives(pack: Pack) -> list[PackObject]:
    """Every object, but the first and the last only of a kind with one for each slice."""
    found: list[PackObject] = []
    for kind in KINDS:
        items = pack.of_kind(kind.name)
        found += [*items[:1], *items[1:][-1:]] if kind.of_each_slice else items
    return found
