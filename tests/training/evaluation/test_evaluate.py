"""The tables: what every writer of reports gets, those that never look among them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from braingemma.errors import VolumeError
from braingemma.findings.vocabulary import Finding, mirror_text
from training.errors import DataError
from training.evaluation.cases import EvaluationCase, folder_cases, load_picture, manifest_cases
from training.evaluation.evaluate import Evaluation, evaluate_cases
from training.evaluation.files import markdown, write_evaluation
from training.evaluation.reporters import Reading, mirror_image
from training.phantoms.phantom import make_phantom, write_phantom
from training.phantoms.wording import write_report
from training.phases.tokenizer import draw_findings

COUNT = 60


def draw_cases(count: int = COUNT) -> list[EvaluationCase]:
    """Cases whose picture is one voxel row that holds the number of the case."""
    rng = np.random.default_rng(5)
    cases = []
    for number in range(count):
        truth = draw_findings(rng)
        picture = nib.Nifti1Image(np.full((2, 1, 1), number, np.float32), np.diag([2.0, 2, 2, 1]))
        cases.append(
            EvaluationCase(f"case-{number}", truth, write_report(truth, rng), lambda kept=picture: (kept, None))
        )
    return cases


class Reader:
    """Writes a function of the reference report, having found the case by its picture."""

    def __init__(self, cases: list[EvaluationCase], words: Any, *, sees_sides: bool = True) -> None:
        self.references = [case.reference for case in cases]
        self.words = words
        self.sees_sides = sees_sides
        self.name = "reader"

    def read(self, image: Any, _name: str, /, *, flip: bool) -> Reading:
        report = self.words(self.references[int(image.dataobj[0, 0, 0])])
        other = mirror_text(report) if self.sees_sides else report
        return Reading(report, other if flip else None, {"edema": 0.9})


def judged(words: Any, **options: Any) -> Evaluation:
    cases = draw_cases()
    return evaluate_cases(Reader(cases, words, **options), cases, samples=20)


@pytest.fixture(scope="module")
def perfect() -> Evaluation:
    return judged(lambda report: report)


def negate(report: str) -> str:
    """The report with every finding turned into its opposite."""
    topics = {"The lesion area": "a left frontal", "Edema": "", "Necrosis": "", "Ventricular compression": ""}
    said = []
    for sentence, topic in zip(report.split(". "), topics, strict=True):
        denied = any(word in sentence.lower() for word in ("not ", "no ", "absent", "without", "free"))
        place = " in the left frontal lobe" if topic != "Ventricular compression" else " on the left"
        said.append(f"{topic} is present{place}." if denied else f"{topic} is not observed.")
    return " ".join(said)


def test_the_truth_itself_is_perfect(perfect: Evaluation) -> None:
    model = perfect.table["model"]
    for name in ("laterality_f1", "laterality_kappa", "anatomy_f1", "anatomy_kappa", "pathology_f1", "pathology_kappa",
                 "healthy_specificity", "side_kappa", "bleu_1", "bleu_4", "rouge_l"):  # fmt: skip
        assert model[name] == pytest.approx(1.0), name
    assert model["cider"] > 5
    assert perfect.flip_consistency == 1.0
    assert perfect.table["left-right flip"]["laterality_f1"] == pytest.approx(1.0)


def test_every_table_has_the_reports_that_never_look(perfect: Evaluation) -> None:
    rows = ["model", "constant report", "majority report", "shuffled images", "left-right flip"]
    assert list(perfect.table) == rows
    kappas = [name for name in perfect.table["model"] if name.endswith("_kappa")]
    assert len(kappas) >= 12
    for row in rows[1:4]:
        for name in kappas:
            value = perfect.table[row][name]
            assert value is None or abs(value) <= 0.05, (row, name, value)
        assert perfect.table[row]["pathology_kappa"] is not None


def test_a_negated_copy_of_the_reference_scores_at_or_below_zero() -> None:
    table = judged(negate).table["model"]
    for name in ("lesion", "edema", "necrosis", "ventricular_compression"):
        assert table[f"{name}_kappa"] <= 0, name
        assert table[f"{name}_informedness"] <= 0, name
    assert table["pathology_kappa"] <= 0
    assert table["keyword_pathology_f1"] > 0.6  # what bare keywords make of it


def test_a_reader_that_ignores_sides_fails_the_flip_test() -> None:
    found = judged(lambda report: report, sees_sides=False)
    assert found.flip_consistency is not None
    assert found.flip_consistency < 0.6
    assert found.table["left-right flip"]["laterality_f1"] < 0.5


def test_healthy_and_pathological_cases_are_kept_apart(perfect: Evaluation) -> None:
    assert perfect.apart["healthy"]["cases"] + perfect.apart["pathological"]["cases"] == COUNT
    assert perfect.apart["healthy"]["laterality_f1"] is None
    assert perfect.apart["healthy"]["healthy_specificity"] == 1.0
    assert perfect.apart["pathological"]["healthy_specificity"] is None


def test_a_case_that_fails_is_shown_and_counted(tmp_path: Path) -> None:
    cases = draw_cases(12)

    def broken() -> Any:
        raise VolumeError("this file is cut off")

    cases[3] = replace(cases[3], open=broken)
    found = evaluate_cases(Reader(cases, lambda report: report), cases, samples=20)
    write_evaluation(found, tmp_path, "a test")
    assert found.failed == 1
    assert found.table["model"]["cases"] == 12
    assert found.table["model"]["rouge_l"] == pytest.approx(11 / 12)
    text = (tmp_path / "evaluation.md").read_text()
    assert "12 cases, 1 failed" in text
    assert "case-3: this file is cut off" in text
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows if row["error"]] == ["case-3"]
    facts = json.loads((tmp_path / "evaluation.json").read_text())
    assert facts["failures"] == {"case-3": "this file is cut off"}
    for picture in ("evaluation.png", "reliability.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_the_first_table_has_the_cards_columns(perfect: Evaluation) -> None:
    header = next(line for line in markdown(perfect, "x").splitlines() if line.startswith("| Model"))
    assert header.startswith("| Model | BLEU-1 | BLEU-4 | ROUGE-L | CIDEr | Lat F1 | Anat F1 | Path F1 |")
    low, high = perfect.intervals["laterality_f1"]
    assert low <= perfect.table["model"]["laterality_f1"] <= high + 1e-9
    assert "cider" in perfect.intervals


def test_reliability_is_counted(perfect: Evaluation) -> None:
    (only,) = perfect.reliability["edema"]
    assert only.probability == pytest.approx(0.9)
    assert perfect.calibration["edema"] == pytest.approx(abs(0.9 - only.frequency))
    assert perfect.calibration["necrosis"] is None


# ---- where cases come from


def test_folders_of_phantoms_are_judged_with_their_truth(tmp_path: Path) -> None:
    phantom = make_phantom(3, spacing=5.0, stripped=True, with_lesion=True)
    write_phantom(tmp_path / "one", phantom)
    (case,) = folder_cases(tmp_path)
    assert case.truth == phantom.findings
    assert case.reference == phantom.truth["report"]
    image, mask = case.open()
    assert image.shape == mask.shape
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "truth.json").write_text("{}")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "truth.json").write_text('{"findings": []}')
    with pytest.raises(DataError, match=r"2 problems(.|\n)*three(.|\n)*missing(.|\n)*two"):
        folder_cases(tmp_path)
    with pytest.raises(DataError, match="found none"):
        folder_cases(tmp_path / "one")


def test_manifests_are_judged_by_their_reports(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [
        {"image": "gone.nii", "report": "The lesion area is in the left frontal lobe.", "split": s}
        for s in ("val", "test")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    (case,) = manifest_cases(path, "test")
    assert case.truth[0] == Finding("lesion", "present", "left", ("frontal",))
    with pytest.raises(VolumeError, match="no such file"):
        case.open()
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b123")
    with pytest.raises(VolumeError, match="not a readable"):
        load_picture(tmp_path / "cut.nii.gz")


def test_a_mirrored_picture_has_the_other_side_bright() -> None:
    data = np.zeros((6, 4, 4), np.float32)
    data[1] = 1.0  # the patient's left: RAS, low x
    for axes in ("RAS", "LPS", "PIR"):
        image = nib.Nifti1Image(data, np.eye(4))
        turned = image.as_reoriented(nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)))  # fmt: skip
        mirrored = np.asarray(mirror_image(turned).dataobj)
        assert mirrored[4].min() == 1.0
        assert mirrored[1].max() == 0.0
