"""What every encoder of one pack works from: source, content, UIDs, references to slices, and our equipment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

import numpy as np
from highdicom.base_content import ContributingEquipment
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from pydicom.valuerep import DSfloat

from dicom_io.content import codes
from dicom_io.content.equipment import MANUFACTURER, MODEL_NAME
from dicom_io.content.kind import ResultKind
from dicom_io.content.received_text import CHARACTER_SET, under_received_label
from dicom_io.content.report import RESEARCH_USE_LINE, ReportContent
from dicom_io.content.sources import Sources
from dicom_io.content.uids import device_uid, digest_uid
from dicom_io.volume.geometry import SeriesGeometry


@dataclass(frozen=True, eq=False)
class ResultContext:
    """What every encoder of one pack works from.

    Attributes:
        sources: The received series.
        geometry: Its geometry.
        content: What to say.
        identity: Digest of everything that affects the content, but for the received instances and our version.
    """

    sources: Sources
    geometry: SeriesGeometry
    content: ReportContent
    identity: str

    def series_uid(self, kind: str) -> str:
        """Series Instance UID of one kind of object."""
        return digest_uid(*self._origin, kind, "series")

    def instance_uid(self, kind: str, index: int = 0) -> str:
        """SOP Instance UID of one object."""
        return digest_uid(*self._origin, kind, index)

    @cached_property
    def _origin(self) -> tuple[str, ...]:
        """What all UIDs follow from: with late slices or another version of this software they change too."""
        return (self.identity, software_version(), *sorted(self.sources.by_uid))

    @property
    def device_uid(self) -> str:
        """UID of the device that reports: changes with the weights."""
        return device_uid(self.content.model.weights_sha256)

    @property
    def software_versions(self) -> tuple[str, ...]:
        """Our version, the model's, and its weights, each as one LO value that stays legal with a pad behind it."""
        model = self.content.model
        return (software_version(), as_lo(f"{model.name} {model.version}"), f"weights {model.weights_sha256[:32]}")

    def identification(self, kind: ResultKind) -> dict[str, Any]:
        """Arguments that every highdicom object takes."""
        return {
            "series_instance_uid": self.series_uid(kind.name),
            "series_number": kind.series_number,
            "sop_instance_uid": self.instance_uid(kind.name),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": MODEL_NAME,
            "software_versions": list(self.software_versions),
            "device_serial_number": self.content.model.weights_sha256[:64],
            "series_description": self.series_description(kind.series_description),
            "specific_character_set": CHARACTER_SET,
        }

    def series_description(self, description: str) -> str:
        """Series description with the banner in short, at most 64 characters (LO)."""
        return as_lo(f"{description}, synthetic-trained demo" if self.content.banner else description)

    def content_description(self, description: str) -> str:
        """Content description with the banner in short, at most 64 characters (LO)."""
        return as_lo(f"{description}; trained on synthetic images only" if self.content.banner else description)

    def comment(self, image: Dataset) -> None:
        """Say on an image what it is worth, and which body part it shows."""
        image.ImageComments = " ".join(part for part in (RESEARCH_USE_LINE, self.content.banner) if part)
        image.BodyPartExamined = "BRAIN"

    def finish(self, dataset: Dataset) -> None:
        """Give a built object what all of ours carry: equipment, purpose, banner, UTF-8."""
        dataset.SpecificCharacterSet = CHARACTER_SET
        equipment = ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=codes.PROCESSING_EQUIPMENT,
            manufacturer_model_name=MODEL_NAME,
            software_versions=list(self.software_versions),
            device_serial_number=self.content.model.weights_sha256[:64],
            contribution_description="Draft report and explanation by an AI model, research use only",
        )
        equipment.DeviceUID = self.device_uid
        others = list(dataset.get("ContributingEquipmentSequence", []))
        dataset.ContributingEquipmentSequence = [*others, equipment]

    def as_written(self, dataset: Dataset) -> Dataset:
        """A finished object as it is written: in UTF-8, or with the received bytes under the received label."""
        return under_received_label(dataset, self.sources.header)

    @cached_property
    def planes(self) -> list[Dataset]:
        """One header for each source slice, in the order of the geometry, as highdicom expects single-frame sources.

        Every plane has a UID of its own: `restore_references` puts back instance and frame once an object is built.
        """
        return [self._plane(index) for index in range(len(self.geometry.slices))]

    def _plane(self, index: int) -> Dataset:
        plane = Dataset()
        plane.update(self._grid)
        plane.SOPInstanceUID = digest_uid(self.identity, "plane", index)
        plane.ImagePositionPatient = decimals(self.geometry.slices[index].position)
        return plane

    @cached_property
    def _grid(self) -> Dataset:
        """What all planes have in common."""
        geometry = self.geometry
        plane = Dataset()
        plane.update(self.sources.header)
        plane.SOPClassUID = MRImageStorage
        plane.SeriesInstanceUID = geometry.series_uid
        plane.Modality = "MR"
        plane.Rows, plane.Columns = geometry.rows, geometry.columns
        plane.PixelSpacing = decimals(geometry.pixel_spacing)
        plane.ImageOrientationPatient = decimals(orthonormal(geometry.orientation))
        plane.SliceThickness = decimals([geometry.slice_spacing])[0]
        plane.SpacingBetweenSlices = plane.SliceThickness
        if geometry.frame_of_reference_uid:
            plane.FrameOfReferenceUID = geometry.frame_of_reference_uid
        return plane

    def restore_references(self, dataset: Dataset) -> None:
        """Replace references to planes by references to the received instances and frames, in place."""
        indices = {plane.SOPInstanceUID: index for index, plane in enumerate(self.planes)}
        for item in _items_below(dataset):
            index = indices.get(item.get("ReferencedSOPInstanceUID", ""))
            if index is not None:
                self._refer_to_slice(item, index)
        for keyword in ("SourceImageSequence", "ReferencedSeriesSequence"):
            if keyword in dataset:
                _merge_repeated(dataset, keyword)

    def _refer_to_slice(self, item: Dataset, index: int) -> None:
        reference = self.slice_reference(index)
        for keyword in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "ReferencedFrameNumber"):
            if keyword in reference:
                item[keyword] = reference[keyword]

    def frame_numbers(self, index: int) -> list[int] | None:
        """Frame that holds one source slice, as highdicom takes it; None for single-frame sources."""
        source = self.geometry.slices[index]
        if self.sources.by_uid[source.sop_instance_uid].frames < 2 or source.frame_number is None:
            return None
        return [source.frame_number]

    def slice_reference(self, index: int) -> Dataset:
        """SOP Instance Reference (PS3.3 Table 10-3) of one source slice, with its frame for multi-frame sources."""
        source = self.geometry.slices[index]
        item = Dataset()
        item.ReferencedSOPClassUID = source.sop_class_uid
        item.ReferencedSOPInstanceUID = source.sop_instance_uid
        frames = self.frame_numbers(index)
        if frames is not None:
            item.ReferencedFrameNumber = frames
        return item


def software_version() -> str:
    """Version of this software, as `BrainGemma3D for PACS 0.1.0`."""
    return f"{MANUFACTURER} {metadata.version('braingemma3d-pacs')}"


def decimals(values: Sequence[float]) -> list[DSfloat]:
    """Numbers as DS values of at most 16 characters (PS3.5 6.2)."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def orthonormal(orientation: Sequence[float]) -> list[float]:
    """The nearest pair of orthogonal unit vectors: some scanners write three decimals, which is not legal."""
    vectors = np.array(orientation, dtype=np.float64).reshape(2, 3)
    if np.allclose(vectors @ vectors.T, np.eye(2), atol=1e-6):
        return list(orientation)
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    return [round(float(value), 10) for value in (left @ right).ravel()]


def as_lo(text: str) -> str:
    """Text cut to what one LO value may hold: 64 characters, no backslash, no control characters."""
    return "".join(c for c in text if c.isprintable() and c != "\\")[:64].strip()


def _items_below(dataset: Dataset) -> list[Dataset]:
    """All items of all sequences, at any depth."""
    found: list[Dataset] = []
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found += [item, *_items_below(item)]
    return found


def _merge_repeated(dataset: Dataset, keyword: str) -> None:
    """Join references to frames of one instance into one item."""
    for item in dataset[keyword].value:
        if "ReferencedInstanceSequence" in item:
            _merge_repeated(item, "ReferencedInstanceSequence")
    if keyword == "ReferencedSeriesSequence":
        return
    merged: dict[str, Dataset] = {}
    for item in dataset[keyword].value:
        known = merged.setdefault(item.ReferencedSOPInstanceUID, item)
        if known is not item and "ReferencedFrameNumber" in item:
            known.ReferencedFrameNumber = [*_numbers(known), *_numbers(item)]
    dataset[keyword].value = list(merged.values())


def _numbers(item: Dataset) -> list[int]:
    value = item.get("ReferencedFrameNumber", [])
    return [int(number) for number in value] if isinstance(value, Iterable) else [int(value)]
