"""With `[results] deface` no face is in any file or object that a job leaves; where that is not sure there is none."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from braingemma.volume.brain import BrainMask
from daemon.cli.app import app
from daemon.config.sections import Settings
from daemon.errors import Rejected
from daemon.pipeline.process import process
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from dicom_io.volume.nifti import convert_series
from training.phantoms.phantom import Phantom, make_phantom

SPACING = (3.0, 3.0, 5.0)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(900_002, spacing=SPACING, stripped=False, with_lesion=True)


@pytest.fixture
def known_brain(phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> BrainMask:
    """The phantom's own brain, in place of the nets' search for it."""
    assert phantom.extracted is not None
    brain = BrainMask.of(phantom.extracted, SPACING, "deepbet")
    monkeypatch.setattr("braingemma.volume.face.find_brain", lambda *_: brain)
    monkeypatch.setattr("braingemma.volume.preprocess.find_brain", lambda *_: brain)
    return brain


def settings(*, deface: bool = True) -> Settings:
    checks = dict.fromkeys(Settings().checks.model_dump(), "off")
    return Settings.model_validate(
        {"explain": {"enabled": False}, "model": {"threads": 1}, "results": {"deface": deface}, "checks": checks}
    )


def face_of(brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """In front of the frontal pole but for 5 mm, and more than 15 mm below its underside."""
    points = np.stack(np.indices(brain.shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    inside = points[brain]
    front = inside[:, 1].max()
    return (points[..., 1] > front - 5) & (points[..., 2] < inside[inside[:, 1] > front - 10][:, 2].min() - 15)


def test_every_picture_of_a_job_is_without_the_face(phantom: Phantom, known_brain: BrainMask, tmp_path: Path) -> None:
    nibabel.save(phantom.volume, tmp_path / "flair.nii.gz")
    write_series(tmp_path / "flair.nii.gz", tmp_path / "in")
    folder = process(tmp_path / "in", tmp_path / "out", settings())
    [series] = scan_folder(tmp_path / "in").series
    whole = np.asarray(nibabel.load(convert_series(series, tmp_path / "whole.nii").volume_path).dataobj)
    defaced = nibabel.load(folder.volume)
    voxels, face = np.asarray(defaced.dataobj), face_of(known_brain.mask, phantom.volume.affine)
    assert np.unique(whole[face]).size > 1
    assert np.unique(voxels[face]).size == 1
    assert np.array_equal(voxels[known_brain.mask], whole[known_brain.mask])
    assert np.allclose(defaced.affine, phantom.volume.affine, atol=1e-3)
    lesion = np.asarray(phantom.lesion.dataobj) > 0
    assert np.array_equal(voxels[lesion], whole[lesion])
    assert not folder.whole_head.exists()
    assert (np.asarray(nibabel.load(folder.brain_mask).dataobj) > 0).sum() == known_brain.mask.sum()
    assert json.loads(folder.report_json.read_text())["input"]["defaced"] is True
    pictures = [pydicom.dcmread(file) for file in sorted((folder.dicom / "sc").iterdir())]
    assert {d.RecognizableVisualFeatures for d in pictures} == {"NO"}
    below = np.flatnonzero(face.any(axis=(0, 1)))[0]  # a slice in which a face would be
    shown = pictures[below].pixel_array.max(axis=2)
    gone = 1 - (voxels[..., below] > 0).mean()
    assert (shown < 8).mean() > 0.7 * gone


def test_an_implausible_mask_leaves_no_volume(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert phantom.extracted is not None
    part = BrainMask.of(phantom.extracted & (np.indices(phantom.extracted.shape)[0] < 25), SPACING, "deepbet")
    monkeypatch.setattr("braingemma.volume.face.find_brain", lambda *_: part)
    nibabel.save(phantom.volume, tmp_path / "flair.nii.gz")
    with pytest.raises(Rejected, match="the face cannot be removed: expected a brain mask"):
        process(tmp_path / "flair.nii.gz", tmp_path / "out", settings())
    assert not list((tmp_path / "out").rglob("*.nii*"))


def test_send_deface_sends_heads_without_faces_and_nothing_else(
    phantom: Phantom, known_brain: BrainMask, tmp_path: Path
) -> None:
    files = write_series(phantom.volume, tmp_path / "in" / "head", overrides={"PatientID": "P-SECRET"})
    localizer = nibabel.Nifti1Image(np.ones((16, 16, 3), np.int16), np.diag([9, 9, 30, 1.0]))
    uids = {"SeriesInstanceUID": "1.2.3.9", "StudyInstanceUID": pydicom.dcmread(files[0]).StudyInstanceUID}
    write_series(localizer, tmp_path / "in" / "localizer", overrides=uids)
    config = tmp_path / "braingemma.toml"
    config.write_text(f'[storage]\nfolder = "{tmp_path / "data"}"\n')
    pacs = EmbeddedPacs(tmp_path / "pacs")
    try:
        arguments = ["send", str(tmp_path / "in"), "--to", f"TESTPACS@127.0.0.1:{pacs.port}", "--deface", "--json",
                     "--deidentify", "--config", str(config)]  # fmt: skip
        run = CliRunner().invoke(app, arguments)
        received = pacs.instances()
    finally:
        pacs.stop()
    said = json.loads(run.stdout)
    assert said["stored"] == len(files) == len(received)
    assert len(said["failed"]) == 3
    assert all("localizer" in line and "not sent" in line for line in said["failed"])
    assert run.exit_code == 1
    assert {d.RecognizableVisualFeatures for d in received} == {"NO"}
    assert {code.CodeValue for d in received for code in d.DeidentificationMethodCodeSequence} >= {"113102"}
    assert "P-SECRET" not in str(received)
    came = [pydicom.dcmread(file) for file in (tmp_path / "pacs").glob("*/*.dcm")]
    voxels = np.stack([d.pixel_array for d in sorted(came, key=lambda d: float(d.ImagePositionPatient[2]))])
    whole = np.stack([pydicom.dcmread(file).pixel_array for file in files])
    changed = voxels != whole
    assert changed.any()
    assert set(np.unique(voxels[changed])) <= set(np.unique(whole[:, [0, 0, -1, -1], [0, -1, 0, -1]]))
