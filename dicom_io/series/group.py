"""Files of a folder, grouped into series; what cannot be read is kept aside with a reason.

Grouping is by SeriesInstanceUID alone. Whether the instances of a series belong together (one patient, one orientation,
one echo, ...) is judged later, by `selection.judge` and `stack.series_geometry`, so that the reason can be told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_io import header
from dicom_io.errors import FileError, SeriesError
from dicom_io.series.file import read_header
from dicom_io.series.repeats import without_repeats


@dataclass(frozen=True)
class FileProblem:
    """A file that takes no part.

    Attributes:
        path: The file.
        reason: What was expected and what came.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Series:
    """Instances that share one SeriesInstanceUID.

    Attributes:
        series_uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID of the first instance.
        modality: Modality of the first instance; empty where absent.
        folder: Folder that holds all files, at any depth.
        files: Paths, one for each header, ordered by InstanceNumber, then by path.
        headers: Datasets without pixel data, in the order of `files`.
    """

    series_uid: str
    study_uid: str
    modality: str
    folder: Path
    files: tuple[Path, ...]
    headers: tuple[Dataset, ...] = field(repr=False)

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
        folder: Any nesting; the depth and the file names mean nothing. Hidden files count too.

    Returns:
        Series and problems. A file that is not DICOM, is truncated or repeats an instance becomes a problem.

    Raises:
        SeriesError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise SeriesError(f"expected a folder of DICOM files, got {folder}")
    return scan_files(folder, sorted(p for p in folder.rglob("*") if p.is_file()))


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
        series = _group(folder, kept)
    problems += [FileProblem(path, reason) for path, reason in repeated]
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


def _group(folder: Path, read: list[tuple[Path, Dataset]]) -> list[Series]:
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    for path, dataset in read:
        groups.setdefault(header.uid(dataset, "SeriesInstanceUID"), []).append((path, dataset))
    series = [_series(folder, uid, members) for uid, members in groups.items()]
    return sorted(series, key=lambda s: (s.number if s.number is not None else 1 << 31, s.series_uid))


def _series(folder: Path, uid: str, members: list[tuple[Path, Dataset]]) -> Series:
    def order(member: tuple[Path, Dataset]) -> tuple[int, Path]:
        number = header.whole_number(member[1], "InstanceNumber")
        return (number if number is not None else 1 << 31, member[0])

    members = sorted(members, key=order)
    first = members[0][1]
    return Series(
        series_uid=uid,
        study_uid=header.uid(first, "StudyInstanceUID"),
        modality=header.text(first, "Modality"),
        folder=folder,
        files=tuple(path for path, _ in members),
        headers=tuple(dataset for _, dataset in members),
    )
