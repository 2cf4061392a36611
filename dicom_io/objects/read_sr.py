"""What one of our own report documents says: read back from a PACS, to compare a later study with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_io import header
from dicom_io.content import codes
from dicom_io.content.equipment import is_own_result
from dicom_io.objects.kinds import SR


@dataclass(frozen=True)
class ReadResult:
    """What a comparison needs of a document."""

    model_name: str
    model_version: str
    weights_sha256: str
    volume_ml: float | None
    """Of the lesion; None where it states none."""


def read_sr(document: Dataset) -> ReadResult | None:
    """The result of a document; None where it is not one of our reports, or does not name its weights."""
    weights = header.text(document, "DeviceSerialNumber")
    if not is_own_result(document) or header.uid(document, "SOPClassUID") != str(SR.sop_class_uid) or not weights:
        return None
    texts = {_named(item): header.text(item, "TextValue") for item in _walk(document)}
    return ReadResult(
        model_name=texts.get(_key(codes.ALGORITHM_NAME), "").partition(" (")[0],
        model_version=texts.get(_key(codes.ALGORITHM_VERSION), ""),
        weights_sha256=weights,
        volume_ml=next(_lesion_volumes(document), None),
    )


def _lesion_volumes(document: Dataset) -> Iterator[float]:
    """Volumes in the findings that are not those of a ventricle."""
    ventricle = _key(codes.MEASURED_SITES["ventricle_volume_left"])
    for section in header.items(document, "ContentSequence"):
        for finding in (
            header.items(section, "ContentSequence") if _named(section) == _key(codes.FINDINGS_SECTION) else ()
        ):
            inside = header.items(finding, "ContentSequence")
            sites = {_code(item, "ConceptCodeSequence") for item in inside}
            for item in inside:
                values = header.items(item, "MeasuredValueSequence")
                if _named(item) == _key(codes.VOLUME) and values and ventricle not in sites:
                    value = header.number(values[0], "NumericValue")
                    if value is not None:
                        yield value


def _walk(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in header.items(item, "ContentSequence"):
        yield from _walk(child)


def _named(item: Dataset) -> tuple[str, str]:
    return _code(item, "ConceptNameCodeSequence")


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    found = header.items(item, keyword)
    return (header.text(found[0], "CodeValue"), header.text(found[0], "CodingSchemeDesignator")) if found else ("", "")


def _key(code: Code) -> tuple[str, str]:
    return code.value, code.scheme_designator
