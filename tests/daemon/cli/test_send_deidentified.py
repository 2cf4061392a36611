"""`braingemma send`: what arrives is whole; with --deidentify it carries pseudonyms, or is not sent."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from daemon.cli.app import app
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series


def test_images_arrive_without_identities_and_the_same_in_every_run(tmp_path: Path) -> None:
    volume = nibabel.Nifti1Image(np.arange(16 * 16 * 5, dtype=np.int16).reshape(16, 16, 5), np.diag([8, 8, 20, 1.0]))
    files = write_series(volume, tmp_path / "in", overrides={"PatientID": "PID-SECR", "PatientName": "Geheim^Ottilie"})
    screen = pydicom.dcmread(files[4])
    screen.BurnedInAnnotation = "YES"
    screen.save_as(files[4])
    (tmp_path / "in" / "0").symlink_to("nowhere")
    config = tmp_path / "braingemma.toml"
    config.write_text(f'[storage]\nfolder = "{tmp_path / "data"}"\n')
    pacs = EmbeddedPacs(tmp_path / "pacs")
    try:
        arguments = ["send", str(tmp_path / "in"), "--to", f"TESTPACS@127.0.0.1:{pacs.port}", "--deidentify",
                     "--config", str(config), "--json"]  # fmt: skip
        runs = [CliRunner().invoke(app, arguments) for _ in range(2)]
        received = pacs.instances()
    finally:
        pacs.stop()
    said = [json.loads(run.stdout) for run in runs]
    assert [s["stored"] for s in said] == [4, 4]
    assert [run.exit_code for run in runs] == [1, 1]
    [lost, refused] = said[0]["failed"]
    assert lost == f"{tmp_path / 'in' / '0'}: a link that leads nowhere"
    assert refused.startswith(f"{files[4]}: not sent: ")
    assert "burned into its pixels" in refused
    assert len({d.SOPInstanceUID for d in received}) == 4  # the second run brought the same instances
    assert len({d.StudyInstanceUID for d in received}) == 1
    assert "Ottilie" not in str(received)
    assert "PID-SECR" not in str(received)
    assert {d.PatientIdentityRemoved for d in received} == {"YES"}
    assert (tmp_path / "data" / "pseudonyms.key").exists()


def test_an_element_without_a_value_representation_does_not_end_what_is_sent(tmp_path: Path) -> None:
    """pydicom stops reading there: nothing behind it, the pixels included, would go out."""
    volume = nibabel.Nifti1Image(np.arange(16 * 16 * 3, dtype=np.int16).reshape(16, 16, 3), np.diag([8, 8, 20, 1.0]))
    files = write_series(volume, tmp_path / "in", overrides={"PatientName": "Whole^One"})
    originals = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, files)}
    for path in files:
        raw = path.read_bytes()
        at = raw.index(b"\x08\x00\x60\x00CS")  # Modality, before the UIDs of study and series
        path.write_bytes(raw[: at + 4] + b"??" + raw[at + 6 :])
    pacs = EmbeddedPacs(tmp_path / "pacs")
    try:
        run = CliRunner().invoke(app, ["send", str(tmp_path / "in"), "--to", f"TESTPACS@127.0.0.1:{pacs.port}"])
        received = [pydicom.dcmread(f) for f in pacs.folder.glob("*/*.dcm")]
    finally:
        pacs.stop()
    assert run.exit_code == 0, run.output
    assert len(received) == len(files)
    for dataset in received:
        assert dataset == originals[dataset.SOPInstanceUID]


@pytest.mark.parametrize("key", [b"short"])
def test_a_damaged_key_is_said_before_anything_is_sent(key: bytes, tmp_path: Path) -> None:
    (tmp_path / "pseudonyms.key").write_bytes(key)
    config = tmp_path / "braingemma.toml"
    config.write_text(f'[storage]\nfolder = "{tmp_path}"\n')
    arguments = ["send", str(tmp_path), "--to", "A@127.0.0.1:1", "--deidentify", "--config", str(config)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "expected a key of at least 32 bytes, got 5" in str(result.exception)
