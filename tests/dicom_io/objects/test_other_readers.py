"""dcmqi, on which 3D Slicer's readers rest, reads what we write: values, geometry, sides and text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from results_factory import PLANES, default_pack, left_mark, make_case

from dicom_io.content.report import LESION_VOLUME
from dicom_io.pack.encode import encode_pack, wanted


def dcmqi(tool: str, *arguments: str) -> str:
    binary = Path(sys.executable).with_name(tool)
    if not binary.is_file() and shutil.which(tool) is None:
        pytest.skip(f"{tool} (PyPI dcmqi) is not installed")
    command = [str(binary) if binary.is_file() else tool, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def path_of(kind: str) -> str:
    return str(default_pack()[1].of_kind(kind)[0].path)


def centre_mm(image: nib.Nifti1Image, mask: np.ndarray) -> np.ndarray:
    """RAS mm."""
    return nib.affines.apply_affine(image.affine, np.argwhere(mask)).mean(axis=0)


@pytest.mark.parametrize("plane", PLANES)
def test_the_parametric_map_has_its_values_at_their_places(plane: str, tmp_path: Path) -> None:
    """dcmqi takes the order of the frames for that of the places: the other way round it would mirror the map."""
    case = make_case(tmp_path / "case", plane)
    pack = encode_pack(**case.arguments(kinds=wanted(sr=False, sc=False, seg=False), out=tmp_path / "dicom"))
    out = tmp_path / "read"
    out.mkdir()
    dcmqi("paramap2itkimage", "--inputDICOM", str(pack.objects[0].path), "--outputDirectory", str(out), "-t", "nii")
    [path] = out.glob("*.nii*")
    read, ours = nib.load(path), nib.load(case.saliency_path)
    values = np.asarray(read.dataobj)
    assert values.max() == pytest.approx(0.4, abs=1e-4)
    assert values.min() == pytest.approx(-0.2, abs=1e-4)
    theirs = centre_mm(read, values > 0.2)
    assert theirs == pytest.approx(centre_mm(ours, np.asarray(ours.dataobj) > 0.2), abs=0.1)
    assert theirs[0] < 0  # the patient's left


def test_both_segments_lie_on_their_side(tmp_path: Path) -> None:
    dcmqi("segimage2itkimage", "--inputDICOM", path_of("seg"), "--outputDirectory", str(tmp_path), "-t", "nii")
    paths = sorted(tmp_path.glob("*.nii*"))
    assert len(paths) == 2
    for path in paths:
        read = nib.load(path)
        mask = np.asarray(read.dataobj) > 0
        assert mask.sum() == left_mark().sum()
        assert centre_mm(read, mask)[0] < 0
    meta = json.loads((tmp_path / "meta.json").read_text())
    labels = [segment["SegmentLabel"] for group in meta["segmentAttributes"] for segment in group]
    assert labels == ["Strongest support for the AI draft", "Lesion as estimated by AI"]


def test_the_regions_are_measured(tmp_path: Path) -> None:
    case, pack = default_pack()
    for kind in ("tid1500", "seg"):
        shutil.copy(pack.of_kind(kind)[0].path, tmp_path)
    out = tmp_path / "measured.json"
    dcmqi("tid1500reader", "--inputDICOM", str(tmp_path / "tid1500.dcm"), "--outputMetadata", str(out))
    found = json.loads(out.read_text())["Measurements"]
    values = [float(item["value"]) for group in found for item in group["measurementItems"]]
    stated = next(m.value for m in case.content.measurements if m.name == LESION_VOLUME)
    assert stated in values
