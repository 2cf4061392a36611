"""Report scores with models of their own: what is asked for is checked first, and nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import constants as hub

from training.errors import DataError
from training.evaluation.text.report_scores import parse_folders, report_scores


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        parse_folders(["bleurt=x", "radgraph", f"ratescore={tmp_path}"])
    lines = str(told.value).splitlines()
    assert lines[0] == "expected NAME=FOLDER with a name out of radgraph, ratescore, green, got 'bleurt=x'"
    assert "got 'radgraph'" in lines[1]
    assert lines[2] == f"ratescore: expected {tmp_path / 'RaTE-NER-Deberta/config.json'}, which is not there"
    assert len(lines) == 4


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "radgraph", None)
    with pytest.raises(
        DataError, match=r"radgraph: needs the package radgraph: pip install 'braingemma3d-pacs\[scores\]'"
    ):
        report_scores({"radgraph": tmp_path}, ["a"], ["b"])


def test_references_and_reports_are_never_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RaTEScore takes the report first, GREEN the reference; the hub stays offline."""
    asked: list[tuple[str, ...]] = []

    class RaTEScore:
        def __init__(self, *, bert_model: str, eval_model: str, use_gpu: bool) -> None:
            asked.append((bert_model, eval_model, str(use_gpu)))

        def compute_score(self, candidate_list: list[str], reference_list: list[str]) -> list[float]:
            asked.append((candidate_list[0], reference_list[0]))
            return [0.25, 0.75]

    class GREEN:
        def __init__(self, model_name: str, output_dir: str) -> None:
            asked.append((model_name, output_dir))

        def __call__(self, refs: list[str], hyps: list[str]) -> tuple[float, float]:
            asked.append((refs[0], hyps[0]))
            return 0.5, 0.1

    for name, kind in (("RaTEScore", RaTEScore), ("green_score", GREEN)):
        module = ModuleType(name)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    found = report_scores({"ratescore": tmp_path, "green": tmp_path}, ["truth", "truth"], ["said", "said"])
    assert found == {"ratescore": 0.5, "green": 0.5}
    assert ("said", "truth") in asked
    assert ("truth", "said") in asked
    assert hub.is_offline_mode()
