"""De-identification by PS3.15's Basic Application Level Confidentiality Profile, with pseudonyms that stay the same.

What is done to which attribute comes from `dicom-anonymizer`'s copy of Table E.1-1 (edition 2026c) and its actions.
On top of it stand, for the whole study, at any depth of sequences:

- UIDs, PatientID and PatientName follow from the old ones and a secret key: the same patient and the same instance get
  the same pseudonym in every run, and nobody without the key can try names until one fits.
- Dates are shifted by a number of days that is the patient's own (option 113107, E.3.6): intervals stay, times of day
  stay. The date of birth goes.
- Elements that no dictionary knows go, as private ones do; the preamble and file meta information are made anew.

Pixels are not looked at. So nothing is taken whose pixels may hold text: screen captures, ultrasound, documents
(E.3.1). Nor are faces removed (E.3.2): a head scan may show its owner, unless `deface` has seen it before.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
from dicomanonymizer import simpledicomanonymizer as library
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ImplicitVRLittleEndian

from dicom_io import header
from dicom_io.errors import DeidentificationError, FileError
from dicom_io.reading import read_dataset
from dicom_io.volume.geometry import SeriesGeometry

EDITION = "dicomfields_2026c"
"""Of Table E.1-1, as the library calls it."""
LONGEST_SHIFT_DAYS, SHORTEST_SHIFT_DAYS = 3650, 30
"""Dates move into the past by something between these."""
KEY_BYTES = 32

METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)
"""Codes of PS3.16 CID 7050, DCM."""
FACE_METHOD = ("113102", "Clean Recognizable Visual Features Option")
METHOD_TEXT = "PS3.15 Basic Profile 2026c, dates modified, {}"

TAKEN_CLASSES = re.compile(
    r"(?:Legacy Converted |Enhanced )*(?:MR|CT|PET)(?: Color)? Image Storage|Positron Emission .*"
)
"""Names of SOP classes whose pixels come from a scanner."""
PICTURES_OF_TEXT = re.compile(r"SCREEN|CAPTURE|REPORT|SECONDARY_CAPTURE|DOSE|PRESENTATION")
"""Words in ImageType of pictures that hold text."""

Key = tuple[int, ...]
Action = Callable[[Dataset, Key], None]


def load_key(path: Path) -> bytes:
    """The secret from which all pseudonyms follow; made where there is none yet, readable by its owner only.

    Raises:
        DeidentificationError: the file is shorter than 32 bytes, or cannot be read or made.
    """
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise DeidentificationError(f"{path}: the key of the pseudonyms: {error.strerror or error}") from error
    if len(key) < KEY_BYTES:
        raise DeidentificationError(f"{path}: expected a key of at least {KEY_BYTES} bytes, got {len(key)}")
    return key


def _make_key(path: Path) -> None:
    """Whole under its name or not there; of two processes that make it at once, one wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


@dataclass(frozen=True)
class Deidentifier:
    """Replaces identities under one key.

    Attributes:
        key: See `load_key`.
        faces_removed: Whether what it is given has no face any more, which it then says.
    """

    key: bytes
    faces_removed: bool = False

    def uid(self, old: str) -> str:
        """The UID in place of another (PS3.5 B.2: `2.25.` and a 128-bit integer); UIDs of the standard stay."""
        if not old or UID(old).name != old:
            return old
        return f"2.25.{int.from_bytes(self._digest('uid', old)[:16], 'big')}"

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """The pseudonym of a patient."""
        return "BG" + self._digest("patient", issuer, patient_id).hex()[:14].upper()

    def digest(self, kind: str, text: str) -> str:
        """Hexadecimal, in place of a text such as a name: of each kind another one."""
        return self._digest(kind, text).hex()

    def shift(self, patient_id: str, issuer: str = "") -> datetime.timedelta:
        """How far a patient's dates move; negative."""
        number = int.from_bytes(self._digest("dates", issuer, patient_id)[:8], "big")
        return -datetime.timedelta(days=SHORTEST_SHIFT_DAYS + number % (LONGEST_SHIFT_DAYS - SHORTEST_SHIFT_DAYS))

    def deidentify(self, dataset: Dataset) -> None:
        """De-identify an instance in place, file meta information included.

        Raises:
            DeidentificationError: its pixels may hold text, it is no image, or a value cannot be read.
        """
        check_takeable(dataset)
        # Patients without an ID must not become one: then the study stands for its patient.
        patient_id = header.text(dataset, "PatientID") or header.uid(dataset, "StudyInstanceUID")
        issuer = header.text(dataset, "IssuerOfPatientID")
        pseudonym = self.patient(patient_id, issuer)
        rules = _own_rules(self, self.shift(patient_id, issuer))
        try:
            with header.quiet("pydicom"):
                for level in list(_levels(dataset)):
                    _drop_unknown(level)
                    library.anonymize_dataset(level, rules, delete_private_tags=True, base_rules_gen=_table)
                    _shift_the_rest(level, rules)
        except (*header.MALFORMED, RecursionError) as error:
            raise DeidentificationError(f"a value cannot be read, so it cannot be replaced: {error}") from error
        dataset.PatientID, dataset.PatientName = pseudonym, pseudonym
        _state_method(dataset, faces_removed=self.faces_removed)
        _renew_meta(dataset)

    def geometry(self, geometry: SeriesGeometry) -> SeriesGeometry:
        """The geometry of the de-identified series."""
        frame = geometry.frame_of_reference_uid
        return replace(
            geometry,
            series_uid=self.uid(geometry.series_uid),
            study_uid=self.uid(geometry.study_uid),
            frame_of_reference_uid=self.uid(frame) if frame else None,
            slices=tuple(replace(s, sop_instance_uid=self.uid(s.sop_instance_uid)) for s in geometry.slices),
        )

    def _digest(self, *parts: str) -> bytes:
        return hmac.digest(self.key, "\x1f".join(parts).encode("utf-8", "surrogatepass"), hashlib.sha256)


def deidentify_file(deidentifier: Deidentifier, source: Path, out: Path) -> None:
    """Write the de-identified form of a DICOM file; see `rewrite_file` and `Deidentifier.deidentify`."""
    rewrite_file(source, out, deidentifier.deidentify)


def rewrite_file(source: Path, out: Path, *changes: Callable[[Dataset], None], pixels: bool = True) -> None:
    """Write a changed copy of a DICOM file.

    Args:
        source: A Part 10 file.
        out: The file to write.
        changes: Each changes the dataset in place.
        pixels: False: without pixel data.

    Raises:
        FileError: it is not DICOM.
        DeidentificationError: it cannot be changed or written.
    """
    try:
        with header.quiet("pydicom"):
            dataset = read_dataset(source, pixels=pixels)
            for change in changes:
                change(dataset)
            dataset.save_as(out, enforce_file_format=True)
    except (pydicom.errors.InvalidDicomError, OSError) as error:
        raise FileError(f"{source.name}: expected a DICOM file (PS3.10): {error}") from error
    except DeidentificationError as error:
        raise DeidentificationError(f"{source.name}: {error}") from error
    except (*header.MALFORMED, RecursionError) as error:
        raise DeidentificationError(f"{source.name}: cannot be written anew: {error}") from error


def check_takeable(dataset: Dataset) -> None:
    """Refuse what cannot be de-identified without a look at its pixels or text.

    Raises:
        DeidentificationError: no image of a scanner, or one that says, or whose kind says, that text is burned in.
    """
    name = UID(header.uid(dataset, "SOPClassUID")).name
    if not TAKEN_CLASSES.fullmatch(name):
        raise DeidentificationError(
            f"expected an MR, CT or PET image, got {name or 'no SOP class'}: may hold identities"
        )
    if header.text(dataset, "BurnedInAnnotation").upper() == "YES":
        raise DeidentificationError("the header says that text is burned into its pixels (Burned In Annotation YES)")
    words = "\\".join(header.texts(dataset, "ImageType")).upper()
    if PICTURES_OF_TEXT.search(words) or header.text(dataset, "ConversionType"):
        raise DeidentificationError(f"a picture that may hold text: {words or header.text(dataset, 'ConversionType')}")


def scrub(text: str, names: Iterable[str]) -> str:
    """A text without the names that stand in it as words of their own, such as those of files that a person named.

    Names that can be no person's stay: a file `2` or `left` must not take a number or a side out of a warning.

    Args:
        text: Such as a warning.
        names: What must not stand in it; the longest is looked for first.
    """
    for name in sorted({n for n in names if n and not _NOBODY.fullmatch(n)}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "[file]", text)
    return text


_NOBODY = re.compile(r"\d{1,4}|left|right", re.IGNORECASE)
"""Names of files that name nobody, but may be words of a warning."""


_QUOTED = re.compile(r"(?<!\w)(['\"])(?:\\.|(?!\1).)*\1", re.DOTALL)
"""As `repr` writes a text; an apostrophe within a word begins none."""


def without_quotes(text: str) -> str:
    """A text with "…" in place of what it quotes: values of headers, such as a SeriesDescription, may name people."""
    return _QUOTED.sub("'…'", text)


_UID_IN_TEXT = re.compile(r"(?<!\d)(?:2\.25\.\d{5,}|\d+(?:\.\d+){3,})")
"""Digits and at least three dots, or the root of UUIDs (PS3.5 B.2), which needs no further dot."""
SHORTEST_UID = 10
"""Characters; shorter numbers with dots are versions."""


def without_uids(text: str, deidentifier: Deidentifier) -> str:
    """A text with each UID that stands in it replaced as in the objects; those of the standard stay.

    To be used once: a second time the replacements, which are UIDs themselves, would be replaced.

    Args:
        text: Such as a warning.
        deidentifier: Which makes the new UIDs.
    """

    def replaced(found: re.Match[str]) -> str:
        uid = found.group()
        return deidentifier.uid(uid) if len(uid) >= SHORTEST_UID else uid

    return _UID_IN_TEXT.sub(replaced, text)


# ---------------------------------------------------------------------- rules


def _table() -> dict[Key, Action]:
    """The library's actions by tag: a copy, as it writes into what it gets."""
    return dict(_TABLE)


_TABLE: Mapping[Key, Action] = library.initialize_actions(EDITION)
_MAY_GO = frozenset(
    (
        library.delete, library.delete_or_empty, library.delete_or_replace, library.delete_or_empty_or_replace,
        library.replace, library.empty_or_replace,
    )
)  # fmt: skip
"""Actions of which removing a whole sequence is, or may be, the outcome; the objects that we take need none of them."""


def _own_rules(deidentifier: Deidentifier, shift: datetime.timedelta) -> dict[Key, Action]:
    """Our own actions for the table's UIDs, dates and sequences, and for the patient."""

    def replace_uids(dataset: Dataset, key: Key) -> None:
        _map_values(dataset, key, deidentifier.uid)

    def shift_dates(dataset: Dataset, key: Key) -> None:
        _map_values(dataset, key, lambda text: shifted(text, shift))

    by_representation = {"UI": replace_uids, "DA": shift_dates, "DT": shift_dates, "TM": _keep}
    rules: dict[Key, Action] = {}
    for key, action in _TABLE.items():
        if len(key) != 2 or key[0] == 0x0002:
            continue
        representation = _representation(key)
        if "Birth" in keyword_for_tag(Tag(key)):
            rules[key] = remove
        elif representation == "SQ":
            rules[key] = remove if action in _MAY_GO else _keep  # what is kept is gone through level by level
        elif representation in by_representation:
            rules[key] = by_representation[representation]
    for keyword in ("PatientBirthDate", "PatientID", "PatientName"):  # the last two get the pseudonym, at the top only
        rules[_key(keyword)] = _empty
    return rules


def remove(dataset: Dataset, key: Key) -> None:
    """X: the library turns dates that it removes into another date."""
    if Tag(key) in dataset:
        del dataset[Tag(key)]


def _empty(dataset: Dataset, key: Key) -> None:
    if Tag(key) in dataset:
        dataset[Tag(key)].value = ""


def _keep(_dataset: Dataset, _key: Key) -> None:
    """A time of day, or a sequence whose items are de-identified one by one."""


def _key(keyword: str) -> Key:
    tag = Tag(str(keyword))
    return (tag.group, tag.element)


def _representation(key: Key) -> str:
    try:
        return dictionary_VR(Tag(key))
    except KeyError:  # of another edition than pydicom's dictionary: what is unknown is removed
        return ""


def _levels(dataset: Dataset) -> Iterator[Dataset]:
    """The dataset and, after it, every item of every sequence that is still there when it is their turn."""
    yield dataset
    for element in list(dataset):
        if element.VR == "SQ" and element.tag in dataset:
            for item in element.value or ():
                yield from _levels(item)


def _drop_unknown(dataset: Dataset) -> None:
    """Remove private elements and those that no dictionary knows: nobody can say what they hold."""
    for tag in [t for t in dataset.keys() if t.is_private or not _is_known(t)]:  # noqa: SIM118 - iterating decodes
        del dataset[tag]


def _is_known(tag: BaseTag) -> bool:
    return bool(keyword_for_tag(tag)) and tag.element != 0


def _shift_the_rest(dataset: Dataset, rules: Mapping[Key, Action]) -> None:
    """Dates and UIDs that the table does not name are treated like those that it does."""
    shift_dates, replace_uids = rules[_key("StudyDate")], rules[_key("StudyInstanceUID")]
    for element in list(dataset):
        key = (element.tag.group, element.tag.element)
        if key in _TABLE or element.tag not in dataset:
            continue
        if element.VR in ("DA", "DT"):
            shift_dates(dataset, key)
        elif element.VR == "UI" and not element.keyword.endswith(("ClassUID", "SyntaxUID")):
            replace_uids(dataset, key)
        elif element.VR == "PN":
            _empty(dataset, key)


def _map_values(dataset: Dataset, key: Key, change: Callable[[str], str]) -> None:
    """Change each value of an element; what is absent or empty stays so."""
    tag = Tag(key)
    if tag not in dataset or dataset[tag].VM == 0:
        return
    element: DataElement = dataset[tag]
    values = element.value if element.VM > 1 else [element.value]
    changed = [change(str(value)) for value in values]
    element.value = changed if len(changed) > 1 else changed[0]


_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})(.*)", re.DOTALL)


def shifted(text: str, shift: datetime.timedelta) -> str:
    """A DA or DT value with its date moved; nothing where no day can be read.

    Args:
        text: `YYYYMMDD`, `YYYY.MM.DD` (ACR-NEMA) or `YYYYMMDDHHMMSS.FFFFFF&ZZXX`.
        shift: Whole days.
    """
    found = _DATE.fullmatch(text.strip())
    if found is None:
        return ""
    year, month, day, rest = found.groups()
    try:
        moved = datetime.date(int(year), int(month), int(day)) + shift
    except (ValueError, OverflowError):
        return ""
    return f"{moved:%Y%m%d}{rest}"


def _state_method(dataset: Dataset, *, faces_removed: bool) -> None:
    """Say that and how it was done (PS3.15 E.1.1, PS3.3 C.12.1.1.3.2)."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD_TEXT.format("face removed" if faces_removed else "pixels as they were")
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    codes = []
    for value, meaning in (*METHODS, *([FACE_METHOD] if faces_removed else ())):
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    dataset.DeidentificationMethodCodeSequence = codes


def _renew_meta(dataset: Dataset) -> None:
    """File meta information and preamble without whatever the source wrote there."""
    old = getattr(dataset, "file_meta", FileMetaDataset())
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = old.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128
