"""What a site's `[checks]` make of a picture that is no FLAIR: a warning in every form of the report, or no report."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import pytest

from braingemma.checkpoint.weights import describe_weights
from daemon.config.sections import Checks, Settings
from daemon.errors import Rejected
from daemon.jobs.report import SMALL_LESIONS, read_report
from daemon.pipeline.process import process
from daemon.pipeline.steps.report import check_picture
from training.phantoms import phantom as phantoms
from training.phantoms.contrast import Contrast

T2 = Contrast(white=0.3, gray=0.42, fluid=0.9, edema=0.6, core=0.55, necrosis=0.8, spots=0.5)


@pytest.fixture(scope="module")
def t2_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t2") / "t2.nii.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms, "draw_contrast", lambda _rng: T2)
        nib.save(phantoms.make_phantom(5_500_004, stripped=True).volume, path)
    return path


def test_a_failed_check_is_a_warning_in_every_form_of_the_report(t2_picture, tmp_path) -> None:
    folder = process(t2_picture, tmp_path, Settings.model_validate({"explain": {"enabled": False}}))
    report = read_report(folder)
    [warning] = [w for w in report.warnings if "does not look like FLAIR" in w]
    assert "fluid is not dark" in warning
    assert warning in folder.report_text.read_text()
    assert "does not look like FLAIR" in folder.report_html.read_text()
    assert {c.name: c.passed for c in report.input.checks}["contrast"] is False
    assert report.intended_use.endswith(SMALL_LESIONS), "as the bundled weights were measured"
    assert not any("cut after" in said for said in report.warnings)


def test_a_site_may_refuse_before_the_model_is_loaded(t2_picture, tmp_path, monkeypatch) -> None:
    from braingemma.model.braingemma3d import BrainGemma3D

    monkeypatch.setattr(BrainGemma3D, "from_pretrained", lambda *_a, **_k: pytest.fail("the model was loaded"))
    settings = Settings.model_validate({"checks": {"contrast": "refuse"}})
    with pytest.raises(Rejected, match=r"refused before the model by \[checks\] contrast: .*fluid is not dark"):
        process(t2_picture, tmp_path, settings)
    assert not (tmp_path / "report.json").exists()


def test_a_check_that_is_off_is_not_made(t2_picture) -> None:
    weights = describe_weights("demo")
    assert check_picture(t2_picture, weights, Checks(**dict.fromkeys(Checks.model_fields, "off"))) == ()
    found = check_picture(t2_picture, weights, Checks(contrast="off", domain="off"))
    assert [c.name for c in found] == ["brain", "coverage", "noise"]
