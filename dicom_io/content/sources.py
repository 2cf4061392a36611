"""The received series as results refer to it: its instances, and a patient and study header that is legal again.

Old archives hold headers that were never, or are no longer, legal. Results keep whatever identifies patient and study
exactly as received (in Unicode; where bytes do not fit their label, those bytes: `received_text`), fill absent type 2
attributes with empty values, cut other text to what its value representation holds, and leave out what no reader could
parse (PS3.5 6.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydicom import DataElement, Dataset
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.errors import InvalidDicomError
from pydicom.valuerep import PersonName, validate_value

from dicom_io import header as received_header
from dicom_io.content.received_text import (
    CHARACTER_SET,
    TEXT,
    as_received,
    holds_received_bytes,
)
from dicom_io.errors import FileError, PackError
from dicom_io.header import MALFORMED, escaped_text
from dicom_io.reading import read_dataset
from dicom_io.series.file import IDENTIFIERS
from dicom_io.volume.geometry import SeriesGeometry

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
"""Patient and General Study attributes that must stand in every instance, empty if need be (PS3.3 C.7.1.1, C.7.2.1)."""

IDENTITY = ("PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID")
"""What identifies patient and study: kept as received, even where that is illegal."""

PATIENT_AND_STUDY = (
    *TYPE_2,
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "OtherPatientNames",
    "PatientBirthTime",
    "EthnicGroup",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
"""What results take over from the source (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2)."""

REQUEST = (
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
)
"""What is said of an order, empty if need be (PS3.3 C.17.2)."""

ABOUT_SOURCE = (
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "Manufacturer",
    "ManufacturerModelName",
    "InstitutionName",
)
"""What encoders need to know of the source: Frame of Reference, General Image, General Equipment."""

_LONGEST = {"SH": 16, "LO": 64, "PN": 64, "ST": 1024, "LT": 10240, "UC": 2**31, "UT": 2**31}
"""Text value representations, and the characters that a value (of PN: a component group) may have (PS3.5 6.2)."""


@dataclass(frozen=True)
class InstanceReference:
    """One received instance, as evidence names it."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    frames: int


@dataclass(frozen=True, eq=False)
class Sources:
    """The received series: one normalised header and a reference to each instance.

    Attributes:
        header: Patient and study attributes of the instance that holds the first slice, as `normalised_header` makes
            them.
        instances: Every received instance.
        requests: Items of a Referenced Request Sequence (PS3.3 C.17.2): what was ordered, as far as the source says.
    """

    header: Dataset
    instances: tuple[InstanceReference, ...]
    requests: tuple[Dataset, ...] = ()

    def patient_and_study(self) -> Dataset:
        """The part of the header that every result carries."""
        kept = Dataset()
        kept.update({element.tag: element for element in self.header if element.keyword in PATIENT_AND_STUDY})
        return kept

    @cached_property
    def by_uid(self) -> dict[str, InstanceReference]:
        """The instances by SOP Instance UID."""
        return {instance.sop_instance_uid: instance for instance in self.instances}

    def illegal_identity(self) -> Iterator[str]:
        """Marks by which a validator's complaint about what was received is known; see `illegal_identity`."""
        uids = {uid for i in self.instances for uid in (i.study_uid, i.series_uid, i.sop_instance_uid)}
        yield from illegal_identity(self.header, uids)


def illegal_identity(header: Dataset, uids: Iterable[str]) -> Iterator[str]:
    """Marks by which a validator's complaint about what was received is known: `<keyword>`, `<value`, `"value"`.

    Args:
        header: As `normalised_header` makes it.
        uids: Received UIDs.
    """
    for keyword in IDENTITY:
        element = header.get(keyword) is not None and header[keyword]
        if element and not _is_legal(element, strict=True):
            yield f"<{keyword}>"
            yield f"<{str(element.value).splitlines()[0]}"
    if holds_received_bytes(header):
        yield from ("<SpecificCharacterSet>", "<Specific Character Set>")
        for element in header:
            if element.VR in TEXT and not str(element.value).isascii():
                yield f"<{_as_printed(str(element.value))}"
    for uid in sorted(uids):
        if not _is_value("UI", uid):
            yield from (f"<{uid}>", f'"{uid}"')  # dciodvfy quotes in two ways


def read_sources(source_files: Sequence[Path], geometry: SeriesGeometry) -> Sources:
    """Read the headers of the received series.

    Raises:
        FileError: a file cannot be read as DICOM.
        PackError: the files are not the study that the geometry describes, or a slice's instance is missing.
    """
    headers = [_read(path) for path in source_files]
    instances = {received_header.uid(h, "SOPInstanceUID"): _reference(h) for h in headers}
    studies = sorted({instance.study_uid for instance in instances.values()})
    if studies != [geometry.study_uid]:
        raise PackError(
            f"sources: expected instances of study {geometry.study_uid}, got {', '.join(studies) or 'none'}"
        )
    missing = [s.sop_instance_uid for s in geometry.slices if s.sop_instance_uid not in instances]
    if missing:
        raise PackError(f"sources: {len(missing)} of {len(geometry.slices)} slices have no file, first {missing[0]}")
    wanted = geometry.slices[0].sop_instance_uid
    first = next(h for h in headers if received_header.uid(h, "SOPInstanceUID") == wanted)
    return Sources(normalised_header(first), tuple(instances.values()), tuple(_requests(first)))


def normalised_header(received: Dataset) -> Dataset:
    """Patient and study attributes of a received instance: legal, type 2 attributes present, in Unicode (ISO_IR 192).

    Where the bytes of one of them do not fit the received Specific Character Set, all that is not ASCII keeps its bytes
    (`received_text`), and the header states the received Specific Character Set.

    Args:
        received: Header of any instance of the study, in any character set.
    """
    header = Dataset()
    exact = _fits(received)
    for keyword in (*PATIENT_AND_STUDY, *ABOUT_SOURCE):
        element = _legal_element(received, keyword, exact=exact)
        if element is not None:
            header.add(element)
    for keyword in TYPE_2:
        if keyword not in header:
            setattr(header, keyword, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    removed = header.get("PatientIdentityRemoved") == "YES"
    if removed and not (header.get("DeidentificationMethod") or header.get("DeidentificationMethodCodeSequence")):
        header.DeidentificationMethod = "Not stated in the received images"  # type 1C, PS3.3 C.7.1.1
    header.StudyInstanceUID = received.StudyInstanceUID
    if exact:
        header.SpecificCharacterSet = CHARACTER_SET
    elif "SpecificCharacterSet" in received:
        header.SpecificCharacterSet = received.SpecificCharacterSet
    return header


def _as_printed(text: str) -> str:
    """Received bytes as a tool prints them that knows no character set, and as we read that (UTF-8)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").rstrip()


def _fits(received: Dataset) -> bool:
    """Whether every text that results take over can be decoded exactly."""
    labels = received_header.character_sets(received)
    texts = [(received, keyword) for keyword in (*PATIENT_AND_STUDY, *ABOUT_SOURCE)]
    items = received_header.items(received, "RequestAttributesSequence")
    texts += [(item, keyword) for item in items for keyword in REQUEST]
    return all(received_header.fits_its_label(holder, keyword, labels) for holder, keyword in texts)


def _requests(received: Dataset) -> Iterator[Dataset]:
    """Each requested procedure that the source names, or the order that its accession number names."""
    try:
        named = list(received.get("RequestAttributesSequence") or [])
    except MALFORMED:
        named = []
    exact = _fits(received)
    order = _legal_element(received, "AccessionNumber", exact=exact)
    if not named and (order is None or not order.value):
        return
    for source in named or [Dataset()]:
        item = Dataset()
        item.StudyInstanceUID = received.StudyInstanceUID
        item.ReferencedStudySequence = []
        for keyword in REQUEST:
            element = _legal_element(source, keyword, exact=exact) or _legal_element(received, keyword, exact=exact)
            setattr(item, keyword, "" if element is None else element.value)
        codes = _legal_element(source, "RequestedProcedureCodeSequence", exact=exact)
        item.RequestedProcedureCodeSequence = [] if codes is None else codes.value
        yield item


def _read(path: Path) -> Dataset:
    try:
        dataset = read_dataset(path, pixels=False)
    except (InvalidDicomError, OSError, *MALFORMED) as error:
        raise FileError(f"{path}: expected a DICOM instance: {error}") from error
    missing = [keyword for keyword in IDENTIFIERS if not dataset.get(keyword)]
    if missing:
        raise FileError(f"{path}: expected {', '.join(missing)}, found none")
    return dataset


def _reference(header: Dataset) -> InstanceReference:
    return InstanceReference(
        sop_class_uid=received_header.uid(header, "SOPClassUID"),
        sop_instance_uid=received_header.uid(header, "SOPInstanceUID"),
        series_uid=received_header.uid(header, "SeriesInstanceUID"),
        study_uid=received_header.uid(header, "StudyInstanceUID"),
        frames=int(header.get("NumberOfFrames") or 1),
    )


def _legal_element(received: Dataset, keyword: str, *, exact: bool) -> DataElement | None:
    """The element in Unicode, or with `exact` false its bytes; None where it is absent, malformed or illegal."""
    try:
        if keyword not in received:
            return None
        raw = None if exact else received_header.raw_text(received, keyword)
        if raw is not None and not (raw.isascii() and b"\x1b" not in raw):
            return _element_of_bytes(received, keyword, raw)
        decoded = escaped_text(received, keyword)
        element = _in_unicode(received[keyword])
        if decoded is not None:
            kept = decoded.rstrip()
            element = DataElement(element.tag, element.VR, PersonName(kept) if element.VR == "PN" else kept)
    except MALFORMED:
        return None
    if keyword in IDENTITY:
        return element
    if element.VR not in dictionary_VR(element.tag).split(" or "):
        return None  # longer than its VR can be written, or of unknown VR (UN)
    if element.VR in _LONGEST:
        return _shortened(element)
    return element if _is_legal(element) else None


def _element_of_bytes(received: Dataset, keyword: str, raw: bytes) -> DataElement | None:
    """The element with its bytes; None where it identifies nobody and is longer than it may be.

    What was received is left as it is: decoding it would lose the bytes.
    """
    element = received.get_item(keyword)
    vr = str(element.VR or dictionary_VR(keyword))
    if vr not in TEXT or (keyword not in IDENTITY and len(raw) > _LONGEST[vr]):
        return None
    text = as_received(raw)
    return DataElement(element.tag, vr, PersonName(text) if vr == "PN" else text)


def _in_unicode(element: DataElement) -> DataElement:
    """The element without ties to the character set it was read in; surplus names are dropped."""
    value = element.value
    if element.VR == "SQ":
        value = [_item_in_unicode(item) for item in value]
    elif element.VR == "PN":
        names = [str(name) for name in (value if element.VM > 1 else [value])]
        single = dictionary_VM(element.tag) == "1"
        value = PersonName(names[0]) if single else [PersonName(name) for name in names]
    return DataElement(element.tag, element.VR, value)


def _item_in_unicode(item: Dataset) -> Dataset:
    copied = Dataset()
    for child in item:
        if not child.tag.is_private and child.keyword != "SpecificCharacterSet":
            copied.add(_in_unicode(child))
    return copied


def _shortened(element: DataElement) -> DataElement:
    """Text without control characters, cut to the length that its value representation allows."""
    longest = _LONGEST[element.VR]
    values = element.value if element.VM > 1 else [element.value]
    texts = ["".join(c if c.isprintable() else " " for c in str(value or "")) for value in values]
    if element.VR == "PN":
        cut = ["=".join(group[:longest] for group in text.split("=")) for text in texts]
    else:
        cut = [text[:longest].strip() for text in texts]
    return DataElement(element.tag, element.VR, cut if element.VM > 1 else cut[0])


def _is_legal(element: DataElement, *, strict: bool = False) -> bool:
    """Whether readers can parse the value; a code must be complete. `strict`: and there is no more than one value."""
    if element.VR == "SQ":
        required = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
        return all(all(item.get(k) for k in required) and all(map(_is_legal, item)) for item in element.value)
    if element.value in (None, ""):
        return True
    values = element.value if element.VM > 1 else [element.value]
    if len(values) > 1 and (strict or dictionary_VM(element.tag) == "1"):
        return False
    return all(_is_value(element.VR, str(value)) for value in values)


def _is_value(representation: str, text: str) -> bool:
    try:
        validate_value(representation, text, RAISE)
    except ValueError:
        return False
    return text.isprintable()
