"""What a report document must hold; each rule yields the faults it finds, in words.

Clauses: PS3.3 C.17.2 (SR Document General), C.17.3 (SR Document Content), A.35.2.3.1 (Enhanced SR relationships).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_io.content import codes
from dicom_io.content.report import LINE_WIDTH, RESEARCH_USE_LINE
from dicom_io.content.sources import InstanceReference
from dicom_io.objects.rules import Faults

LEGAL: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "CONTAINS": (
        frozenset({"CONTAINER"}),
        frozenset({"CONTAINER", "TEXT", "CODE", "NUM", "UIDREF", "IMAGE"}),
    ),
    "HAS OBS CONTEXT": (frozenset({"CONTAINER"}), frozenset({"TEXT", "CODE", "UIDREF"})),
    "HAS CONCEPT MOD": (frozenset({"CONTAINER", "TEXT", "CODE", "NUM"}), frozenset({"TEXT", "CODE"})),
    "INFERRED FROM": (frozenset({"TEXT", "CODE", "NUM"}), frozenset({"IMAGE", "TEXT", "CODE", "NUM"})),
}
"""Relationship -> (parents, children) that PS3.3 Table A.35.2-2 allows, as far as our documents use them."""

OBSERVER_CONCEPTS = (codes.OBSERVER_TYPE, codes.DEVICE_OBSERVER_UID, codes.DEVICE_OBSERVER_NAME)


def report_faults(document: Dataset, received: Sequence[InstanceReference]) -> Faults:
    """Faults of an Enhanced SR of template 2000."""
    yield from _flag_faults(document)
    yield from _template_faults(document, "2000")
    yield from _code_faults(document)
    yield from _observer_faults(document)
    yield from _section_faults(document)
    yield from _tree_faults(document)
    yield from _text_faults(document)
    yield from _evidence_faults(document, {r.sop_instance_uid for r in received}, exact=True)


def regions_faults(document: Dataset, received: Sequence[InstanceReference]) -> Faults:
    """Faults of a Comprehensive 3D SR of template 1500: without coordinates viewers fail on it."""
    yield from _flag_faults(document)
    yield from _template_faults(document, "1500")
    yield from _code_faults(document)
    yield from _observer_faults(document)
    yield from _evidence_faults(document, {r.sop_instance_uid for r in received}, exact=False)
    if not any(item.get("ValueType") == "SCOORD" for _, item in _walk(document)):
        yield "regions: expected spatial coordinates, found none"


def plain_text(document: Dataset) -> str:
    """All text of a document in one line."""
    texts = (str(item.get("TextValue") or "") for _, item in _walk(document))
    return " ".join(" ".join(texts).split())


def _flag_faults(document: Dataset) -> Faults:
    for keyword, expected in (
        ("CompletionFlag", "COMPLETE"),
        ("VerificationFlag", "UNVERIFIED"),
        ("PreliminaryFlag", "PRELIMINARY"),
    ):
        if document.get(keyword) != expected:
            yield f"{keyword}: expected {expected}, found {document.get(keyword)}"
    if document.get("VerifyingObserverSequence"):
        yield "VerifyingObserverSequence: expected none, since nobody verified the draft"


def _template_faults(document: Dataset, template: str) -> Faults:
    found = [
        (item.get("MappingResource"), item.get("TemplateIdentifier"))
        for item in document.get("ContentTemplateSequence") or []
    ]
    if found != [("DCMR", template)]:
        yield f"ContentTemplateSequence: expected template {template} of DCMR, found {found or 'none'}"


def _code_faults(document: Dataset) -> Faults:
    """Every code says what it means, in which scheme (PS3.3 Table 8.8-1)."""
    for path, item in _walk(document):
        for keyword in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
            for code in item.get(keyword) or []:
                missing = [k for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning") if not code.get(k)]
                if missing:
                    yield f"{path}: {keyword}: expected {', '.join(missing)}, found none"
        if not item.get("ConceptNameCodeSequence"):
            yield f"{path}: expected a concept name, found none"
        if item.get("ValueType") == "CODE" and not item.get("ConceptCodeSequence"):
            yield f"{path}: expected a code, found none"


def _observer_faults(document: Dataset) -> Faults:
    context = [i for i in document.get("ContentSequence") or [] if i.get("RelationshipType") == "HAS OBS CONTEXT"]
    for concept in OBSERVER_CONCEPTS:
        if not any(_is_named(item, concept) for item in context):
            yield f"observer: expected {concept.meaning} ({concept.value}, {concept.scheme_designator}), found none"
    for item in context:
        if _is_named(item, codes.DEVICE_OBSERVER_UID) and not item.get("UID"):
            yield "observer: expected a UID of the device, found an empty one"
        if _is_named(item, codes.OBSERVER_TYPE) and not _has_value(item, codes.DEVICE):
            yield "observer: expected a device as observer type"


def _section_faults(document: Dataset) -> Faults:
    content = document.get("ContentSequence") or []
    for section in codes.SECTIONS:
        found = [i for i in content if i.get("ValueType") == "CONTAINER" and _is_named(i, section)]
        if len(found) != 1:
            yield f"section {section.meaning}: expected once, found {len(found)} times"
        elif not any(_says_something(item) for item in found[0].get("ContentSequence") or []):
            yield f"section {section.meaning}: expected text, found none"
    if not any(_is_named(item, codes.LANGUAGE) for item in content):
        yield "language: expected one, found none"


def _tree_faults(document: Dataset) -> Faults:
    """Legal relationships only, and nothing to read where viewers do not look: below TEXT and CODE."""
    for path, parent in _walk(document):
        for child in parent.get("ContentSequence") or []:
            relation, kinds = child.get("RelationshipType"), (parent.get("ValueType"), child.get("ValueType"))
            parents, children = LEGAL.get(relation, (frozenset(), frozenset()))
            if kinds[0] not in parents or kinds[1] not in children:
                yield f"{path}: illegal relationship {kinds[0]} {relation} {kinds[1]}"
            elif kinds[0] in ("TEXT", "CODE") and kinds[1] in ("TEXT", "CODE", "NUM"):
                yield f"{path}: {kinds[1]} nested below {kinds[0]}, where viewers do not show it"


def _text_faults(document: Dataset) -> Faults:
    texts = [(path, str(item.get("TextValue") or "")) for path, item in _walk(document) if item.ValueType == "TEXT"]
    for path, text in texts:
        if not text.strip():
            yield f"{path}: expected text, found none"
        if max(map(len, text.split("\r\n"))) > LINE_WIDTH:
            yield f"{path}: expected lines of at most {LINE_WIDTH} characters, found a longer one"
        if "\n" in text.replace("\r\n", ""):
            yield f"{path}: expected CRLF between lines"
    shown = [text for path, text in texts if "/" in path.strip("/")]  # below the sections
    if not shown or not shown[0].startswith(RESEARCH_USE_LINE):
        yield f"first line: expected {RESEARCH_USE_LINE!r}, found {shown[0][:80]!r}" if shown else "expected text"


def _evidence_faults(document: Dataset, expected: set[str], *, exact: bool) -> Faults:
    """Evidence lists what was received: all of it and, unless the pack adds to it, nothing else."""
    found: set[str] = set()
    for study in document.get("CurrentRequestedProcedureEvidenceSequence") or []:
        if study.get("StudyInstanceUID") != document.get("StudyInstanceUID"):
            yield f"evidence: expected study {document.get('StudyInstanceUID')}, found {study.get('StudyInstanceUID')}"
        for series in study.get("ReferencedSeriesSequence") or []:
            found |= {str(i.ReferencedSOPInstanceUID) for i in series.get("ReferencedSOPSequence") or []}
    if document.get("PertinentOtherEvidenceSequence"):
        yield "evidence: expected none of another study"
    if missing := expected - found:
        yield f"evidence: {len(missing)} of {len(expected)} received instances missing, first {min(missing)}"
    if exact and (extra := found - expected):
        yield f"evidence: {len(extra)} instances that were not received, first {min(extra)}"


def _walk(item: Dataset, path: str = "") -> Iterator[tuple[str, Dataset]]:
    """The content item and all below it, each with its path, such as `/1.3.2`."""
    yield path or "/", item
    for number, child in enumerate(item.get("ContentSequence") or [], start=1):
        yield from _walk(child, f"{path}/{number}")


def _is_named(item: Dataset, concept: Code) -> bool:
    return any(_same(code, concept) for code in item.get("ConceptNameCodeSequence") or [])


def _has_value(item: Dataset, concept: Code) -> bool:
    return any(_same(code, concept) for code in item.get("ConceptCodeSequence") or [])


def _same(code: Dataset, concept: Code) -> bool:
    return (code.get("CodeValue"), code.get("CodingSchemeDesignator")) == (concept.value, concept.scheme_designator)


def _says_something(item: Dataset) -> bool:
    return item.get("ValueType") == "TEXT" and bool(str(item.get("TextValue") or "").strip())
