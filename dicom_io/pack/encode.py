"""All result objects of one case, encoded once: the first bytes on disk are what every send and resend uses."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydicom import Dataset

from dicom_io.content.context import ResultContext
from dicom_io.content.kind import ResultKind
from dicom_io.content.regions import MapDisplay, load_volumes
from dicom_io.content.report import ReportContent
from dicom_io.content.sources import InstanceReference, read_sources
from dicom_io.errors import PackError
from dicom_io.files import sync, whole
from dicom_io.objects.case import Case, maker_of
from dicom_io.objects.kinds import KINDS, SR
from dicom_io.pack.manifest import MANIFEST, Pack, PackObject, load_pack, save_manifest
from dicom_io.pack.validate import check_objects
from dicom_io.volume.geometry import SeriesGeometry

__all__ = ["MANIFEST", "Pack", "PackObject", "encode_pack", "load_pack", "reports_of", "wanted"]


WRITERS = 4
"""Threads that write objects: a disk makes several files durable in little more time than one."""


def wanted(**switches: bool) -> tuple[ResultKind, ...]:
    """The kinds to make: those of the default, but for what is switched on or off by its name.

    Raises:
        PackError: none is left, there is no such kind, or one is to go without that which it needs: alone it would hide
            the report from viewers.
    """
    listed = {kind.name: kind for kind in KINDS if kind.listed}
    if unknown := sorted(set(switches) - set(listed)):
        raise PackError(f"results: expected some of {', '.join(listed)}, got {', '.join(unknown)}")
    chosen = tuple(kind for kind in listed.values() if switches.get(kind.name, kind.by_default))
    for kind in chosen:
        if kind.needs and listed[kind.needs] not in chosen:
            raise PackError(f"results: {kind} needs {kind.needs} as well, since viewers do not show its text")
    if not chosen:
        raise PackError(f"results: expected at least one of {', '.join(listed)}, got none")
    return chosen


def encode_pack(
    *,
    source_files: Sequence[Path],
    geometry: SeriesGeometry,
    volume_path: Path,
    saliency_path: Path | None,
    lesion_path: Path | None,
    content: ReportContent,
    kinds: Collection[ResultKind],
    identity: str,
    out: Path,
    predecessors: Sequence[InstanceReference] = (),
    earlier: Path | None = None,
    display: MapDisplay | None = None,
) -> Pack:
    """Encode, check and store the results of one case; idempotent.

    Args:
        source_files: Every received instance of the series.
        geometry: Geometry of the series.
        volume_path: RAS NIfTI of the series.
        saliency_path: RAS NIfTI of the saliency; None without explanation.
        lesion_path: RAS NIfTI, not 0 inside the lesion whose volume `content` states; None where there is none.
        content: What the results say.
        kinds: Which objects to make; see `wanted`.
        identity: Digest of everything that affects the content; all UIDs follow from it.
        out: Folder of the pack; appears whole or not at all. Holds it already: that pack is returned untouched.
        predecessors: Report documents that this one replaces.
        earlier: Folder of the pack that these results would replace. Where they would be the same results, under the
            same UIDs, its bytes are taken over: the first encode is what every later send sends, and nothing is
            replaced.
        display: What is shown of the saliency; None: it does not say so.

    Returns:
        The pack, as far as asked for and possible; `dicom_io.objects.kinds` names the files.

    Raises:
        PackError: a check failed, the sources do not fit, or `out` holds another pack.
        FileError: a source file is not DICOM.
    """
    if (out / MANIFEST).is_file():
        return _existing(out, identity)
    sources = read_sources(source_files, geometry)
    volumes = load_volumes(geometry, content, volume_path, saliency_path, lesion_path, display)
    context = ResultContext(sources, geometry, content, identity)
    if earlier is not None and _is_same(load_pack(earlier), context):
        with _appearing(out) as folder:
            shutil.copytree(earlier, folder, copy_function=os.link, dirs_exist_ok=True)
        return load_pack(out)
    with _appearing(out) as folder:
        objects = _write(Case(context, volumes, predecessors), kinds, folder)
        pack = Pack(objects, identity, geometry.study_uid, synthetic_only=content.banner is not None)
        check_objects(pack, sources, geometry, banner=content.banner)
        save_manifest(folder, pack)
    return replace(pack, objects=tuple(_moved(item, folder, out) for item in objects))


def _is_same(pack: Pack, context: ResultContext) -> bool:
    """Whether a pack holds what would be encoded now: the UIDs follow from all that affects the content."""
    return all(item.series_uid == context.series_uid(item.kind) for item in pack.objects)


def reports_of(pack: Pack) -> tuple[InstanceReference, ...]:
    """The report documents of a pack, as its successor names them in `predecessors`."""
    return tuple(
        InstanceReference(item.sop_class_uid, item.sop_instance_uid, item.series_uid, pack.study_uid, 1)
        for item in pack.of_kind(SR.name)
    )


def _existing(out: Path, identity: str) -> Pack:
    pack = load_pack(out)
    if pack.identity != identity:
        raise PackError(f"{out}: expected an empty place or the pack of {identity}, found the pack of {pack.identity}")
    return pack


def _write(case: Case, kinds: Collection[ResultKind], folder: Path) -> tuple[PackObject, ...]:
    """Encode into `folder`; others write while the next object is built, of which few may wait: they are in memory."""
    room = threading.Semaphore(2 * WRITERS)
    with ThreadPoolExecutor(WRITERS) as writers:
        pending: list[Future[PackObject]] = []
        for kind, number, dataset in _encoded(case, kinds):
            room.acquire()
            pending.append(writers.submit(_save, case.context, kind, folder / kind.file(number), dataset))
            pending[-1].add_done_callback(lambda _: room.release())
        return tuple(future.result() for future in pending)


def _encoded(case: Case, kinds: Collection[ResultKind]) -> Iterator[tuple[ResultKind, int, Dataset]]:
    """Kind, number from 1, and object, as far as the case has what they need, in the order in which they are sent."""
    for kind in (kind for kind in KINDS if kind in kinds):
        for number, dataset in enumerate(maker_of(kind).make(case), start=1):
            if not kind.of_each_slice:
                case.made[kind.name] = dataset
            yield kind, number, dataset


def _save(context: ResultContext, kind: ResultKind, path: Path, dataset: Dataset) -> PackObject:
    path.parent.mkdir(exist_ok=True)
    context.as_written(dataset).save_as(path, enforce_file_format=True)
    sync(path)
    return PackObject(
        path=path,
        kind=kind.name,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
    )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A working folder beside `out` that becomes `out` if all goes well, and vanishes otherwise."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out}: expected an empty place for the results, found files that are no pack")
    with whole(out) as folder:
        folder.mkdir(parents=True)
        yield folder


def _moved(item: PackObject, old: Path, new: Path) -> PackObject:
    return replace(item, path=new / item.path.relative_to(old))
