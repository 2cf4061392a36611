"""Withdraw replaced results: a Key Object of IHE's Imaging Object Change Management (IOCM, RAD TF-2 4.66).

An archive that knows IOCM hides what the Key Object rejects. The report itself is not rejected: its successor names it
as predecessor.
"""

from __future__ import annotations

from pathlib import Path

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes as dictionary

from dicom_io.content import codes
from dicom_io.content.context import software_version
from dicom_io.content.equipment import MANUFACTURER, MODEL_NAME, is_own_result
from dicom_io.content.received_text import CHARACTER_SET, under_received_label
from dicom_io.content.sources import illegal_identity, normalised_header
from dicom_io.content.uids import digest_uid
from dicom_io.errors import PackError
from dicom_io.files import whole
from dicom_io.objects.kinds import KINDS, REJECTION
from dicom_io.pack.manifest import Pack, PackObject
from dicom_io.pack.validate import dciodvfy_errors, errors_without


def withdrawn(replaced: Pack, by: Pack) -> tuple[PackObject, ...]:
    """Objects of a pack that its successor withdraws: none where the successor holds the same results."""
    kept = {item.sop_instance_uid for item in by.objects}
    return tuple(item for item in _to_withdraw(replaced) if item.sop_instance_uid not in kept)


def _to_withdraw(pack: Pack) -> list[PackObject]:
    return [item for kind in KINDS if kind.withdrawn for item in pack.of_kind(kind.name)]


def encode_rejection(replaced: Pack, out: Path) -> PackObject:
    """Write the Key Object that rejects the images of a replaced pack; idempotent, the first bytes win.

    Args:
        replaced: The pack whose images are withdrawn.
        out: File to write; appears whole or not at all.

    Returns:
        The Key Object, "Rejected for Quality Reasons" (113001, DCM).

    Raises:
        PackError: the pack has no images, or the Key Object breaks a rule of the standard.
    """
    if not out.exists():
        with whole(out) as draft:
            document, identity = _document(replaced)
            under_received_label(document, identity).save_as(draft, enforce_file_format=True)
            errors = errors_without(dciodvfy_errors(draft), [*illegal_identity(identity, [replaced.study_uid])])
            if errors:
                raise PackError(f"rejection: dciodvfy: {'; '.join(errors)}")
    header = dcmread(out)
    return PackObject(
        path=out,
        kind=REJECTION.name,
        sop_class_uid=str(header.SOPClassUID),
        sop_instance_uid=str(header.SOPInstanceUID),
        series_uid=str(header.SeriesInstanceUID),
    )


def _document(replaced: Pack) -> tuple[KeyObjectSelectionDocument, Dataset]:
    """The Key Object, and the identity that it carries."""
    images = _to_withdraw(replaced)
    if not images:
        raise PackError("rejection: expected images to withdraw, found none")
    identity = normalised_header(dcmread(images[0].path, stop_before_pixels=True))
    headers = [dcmread(item.path, stop_before_pixels=True) for item in images]
    strangers = [item.path.name for item, header in zip(images, headers, strict=True) if not is_own_result(header)]
    if strangers:
        raise PackError(f"rejection: expected our own results only, got {', '.join(strangers)}")
    document = KeyObjectSelectionDocument(
        evidence=headers,
        content=KeyObjectSelection(
            document_title=dictionary.DCM.RejectedForQualityReasons,
            referenced_objects=headers,
            observer_device_context=_observer(headers[0]),
            description="Replaced by results of other weights, settings or slices.",
        ),
        series_instance_uid=digest_uid(images[0].sop_instance_uid, REJECTION.name, "series"),
        series_number=REJECTION.series_number,
        sop_instance_uid=digest_uid(images[0].sop_instance_uid, REJECTION.name, 0),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_version(),
        series_description=REJECTION.series_description,
        specific_character_set=CHARACTER_SET,
    )
    document.ContributingEquipmentSequence = headers[0].ContributingEquipmentSequence
    document.update({element.tag: element for element in identity if element.tag in document})
    return document, identity


def _observer(header: Dataset) -> ObserverContext:
    device = next(e for e in header.ContributingEquipmentSequence if "DeviceUID" in e)
    return ObserverContext(
        observer_type=codes.DEVICE,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device.DeviceUID, manufacturer_name=MANUFACTURER, model_name=MODEL_NAME
        ),
    )
