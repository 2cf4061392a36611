"""Files of a folder, grouped into series; what cannot be read is kept aside with a reason.

Grouping is by study and SeriesInstanceUID, then by what `parts` finds. Whether the instances of a series are one
regular volume of one patient is judged later, by `selection.judge` and `stack.series_geometry`, so that the reason can
be told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_io import header
from dicom_io.errors import FileError, SeriesError
from dicom_io.files import files_below
from dicom_io.series.file import read_header
from dicom_io.series.parts import Member, Part, apart, joined
from dicom_io.series.repeats import Repeat, without_repeats


@dataclass(frozen=True)
class FileProblem:
    """A file that takes no part, or a folder that cannot be read.

    Attributes:
        path: The file or folder.
        reason: What was expected and what came.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Series:
    """Instances that are one acquisition: as a rule those that share a SeriesInstanceUID; see `parts`.

    Attributes:
        series_uid: SeriesInstanceUID, of the first instance; see `series_uids`.
        study_uid: StudyInstanceUID of the first instance.
        modality: Modality of the first instance; empty where absent.
        folder: Folder that holds all files, at any depth.
        files: Paths, one for each header, ordered by InstanceNumber, then by path.
        headers: Datasets without pixel data, in the order of `files`.
        part: 1, 2, ... of what `contrasts` split it into; 0 otherwise.
        notes: What a reader of the result should know of how the instances were brought together.
    """

    series_uid: str
    study_uid: str
    modality: str
    folder: Path
    files: tuple[Path, ...]
    headers: tuple[Dataset, ...] = field(repr=False)
    part: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every file has its header."""
        if not self.files or len(self.files) != len(self.headers):
            raise SeriesError(
                f"series {self.series_uid}: expected one header for each of at least one file, "
                f"got {len(self.headers)} headers and {len(self.files)} files"
            )

    @property
    def header(self) -> Dataset:
        """Header of the first instance."""
        return self.headers[0]

    @property
    def description(self) -> str:
        """SeriesDescription; empty where absent."""
        return header.text(self.header, "SeriesDescription")

    @property
    def number(self) -> int | None:
        """SeriesNumber; None where absent."""
        return header.whole_number(self.header, "SeriesNumber")

    @property
    def series_uids(self) -> tuple[str, ...]:
        """`series_uid`, and those of other instances where each slice came as a series of its own."""
        return tuple(dict.fromkeys((self.series_uid, *(header.uid(h, "SeriesInstanceUID") for h in self.headers))))

    def distinct(self, keyword: str) -> tuple[str, ...]:
        """Distinct texts of an element over all instances, in order of appearance; empty texts are left out."""
        return tuple(dict.fromkeys(t for h in self.headers if (t := header.text(h, keyword))))

    @property
    def frame_count(self) -> int:
        """Image planes in all instances together."""
        return sum(header.whole_number(h, "NumberOfFrames") or 1 for h in self.headers)


@dataclass(frozen=True)
class FolderScan:
    """What a folder holds.

    Attributes:
        series: Ordered by SeriesNumber, then by SeriesInstanceUID.
        problems: Files that take no part, in path order.
    """

    series: tuple[Series, ...]
    problems: tuple[FileProblem, ...]


def scan_folder(folder: Path) -> FolderScan:
    """Read every file below a folder.

    Args:
        folder: Any nesting; the depth and the file names mean nothing. Hidden files count too, and links are followed.

    Returns:
        Series and problems. A file that is not DICOM, is truncated or repeats an instance becomes a problem, and so
        does a folder that cannot be read.

    Raises:
        SeriesError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise SeriesError(f"expected a folder of DICOM files, got {folder}")
    files, unread = files_below(folder)
    scan = scan_files(folder, files)
    problems = (*scan.problems, *(FileProblem(path, reason) for path, reason in unread))
    return replace(scan, problems=tuple(sorted(problems, key=lambda p: p.path)))


def scan_files(folder: Path, files: Iterable[Path]) -> FolderScan:
    """Read the given files, all of them below `folder`; see `scan_folder`."""
    read: list[tuple[Path, Dataset]] = []
    problems: list[FileProblem] = []
    with header.quiet("pydicom"):  # it warns of every odd value; what matters of them is judged by rule
        for path in files:
            try:
                read.append((path, read_header(path)))
            except FileError as error:
                problems.append(FileProblem(path, str(error)))
        kept, repeated = without_repeats(read)
        series = _group(folder, kept, repeated)
    problems += [FileProblem(repeat.path, repeat.reason) for repeat in repeated]
    problems.sort(key=lambda p: p.path)
    return FolderScan(series=tuple(series), problems=tuple(problems))


def load_series(folder: Path, files: Iterable[Path]) -> Series:
    """Read files that are known to be one series.

    Raises:
        SeriesError: A file cannot be read, or the files hold several series or none.
    """
    scan = scan_files(folder, files)
    if scan.problems:
        first = scan.problems[0]
        raise SeriesError(f"{len(scan.problems)} of the series' files are unusable; {first.path.name}: {first.reason}")
    if len(scan.series) != 1:
        raise SeriesError(f"expected one series, got {len(scan.series)}")
    return scan.series[0]


def contrasts(series: Series) -> tuple[Series, ...]:
    """The acquisitions that share one SeriesInstanceUID, as a rule one; see `parts.apart`."""
    members = [Member(path, head) for path, head in zip(series.files, series.headers, strict=True)]
    parts = apart(members)
    if len(parts) == 1:
        return (series,)
    return tuple(
        replace(
            series,
            files=tuple(m.path for m in part.members),
            headers=tuple(m.header for m in part.members),
            part=number,
            notes=(*series.notes, *part.notes),
        )
        for number, part in enumerate(parts, start=1)
    )


def _group(folder: Path, read: list[tuple[Path, Dataset]], repeated: list[Repeat]) -> list[Series]:
    groups: dict[tuple[str, str], list[Member]] = {}
    for path, dataset in read:
        key = (header.uid(dataset, "StudyInstanceUID"), header.uid(dataset, "SeriesInstanceUID"))
        groups.setdefault(key, []).append(Member(path, dataset))
    parts = joined(sorted(group, key=_order) for group in groups.values())
    studies: dict[str, set[str]] = {}
    for study, uid in groups:
        studies.setdefault(uid, set()).add(study)
    series = [_series(folder, part, repeated, studies) for part in parts]
    return sorted(series, key=lambda s: (s.number if s.number is not None else 1 << 31, s.series_uid, s.study_uid))


def _order(member: Member) -> tuple[int, Path]:
    number = header.whole_number(member.header, "InstanceNumber")
    return (number if number is not None else 1 << 31, member.path)


def _series(folder: Path, part: Part, repeated: list[Repeat], studies: dict[str, set[str]]) -> Series:
    members = sorted(part.members, key=_order)
    first = members[0].header
    uid = header.uid(first, "SeriesInstanceUID")
    uids = {header.uid(m.header, "SeriesInstanceUID") for m in members}
    clashes = [r for r in repeated if r.other_pixels and r.series_uid in uids]
    named = (
        f"{len(clashes)} instances came a second time under one SOP Instance UID with other pixels; the first of each "
        f"was taken. {clashes[0].path.name} {clashes[0].reason}",
    ) if clashes else ()  # fmt: skip
    return Series(
        series_uid=uid,
        study_uid=header.uid(first, "StudyInstanceUID"),
        modality=header.text(first, "Modality"),
        folder=folder,
        files=tuple(m.path for m in members),
        headers=tuple(m.header for m in members),
        notes=(*part.notes, *named, *_mended(members), *_of_other_studies(first, uids, studies)),
    )


def _mended(members: list[Member]) -> tuple[str, ...]:
    found = ", ".join(dict.fromkeys(name for m in members for name in getattr(m.header, "mended", ())))
    return (f"elements without a value representation were read by the dictionary: {found}",) if found else ()


def _of_other_studies(first: Dataset, series_uids: set[str], studies: dict[str, set[str]]) -> tuple[str, ...]:
    others = sorted(set().union(*(studies[uid] for uid in series_uids)) - {header.uid(first, "StudyInstanceUID")})
    return (f"instances of study {', '.join(others)} have the same series UID and take no part",) if others else ()
