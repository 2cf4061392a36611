"""Every report of the grammar says exactly what it was asked to say."""

from __future__ import annotations

import dataclasses

import numpy as np

from braingemma.findings.text import findings_from_text
from braingemma.findings.vocabulary import mirror_text, mirrored_findings
from training.phantoms.wording import write_report
from training.phases.tokenizer import build_tokenizer, draw_findings


def test_reports_are_read_back_as_they_were_meant() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        findings = draw_findings(rng)
        report = write_report(findings, rng)
        read = tuple(dataclasses.replace(f, confidence=None) for f in findings_from_text(report))
        assert read == findings, report


def test_mirrored_text_carries_mirrored_findings() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        findings = draw_findings(rng)
        read = findings_from_text(mirror_text(write_report(findings, rng)))
        assert tuple(f.laterality for f in read) == tuple(f.laterality for f in mirrored_findings(findings))


def test_wording_varies() -> None:
    rng = np.random.default_rng(2)
    findings = draw_findings(rng, healthy_share=0.0)
    assert len({write_report(findings, rng) for _ in range(40)}) > 10


def test_the_tokenizer_writes_any_text_back() -> None:
    tokenizer = build_tokenizer(vocabulary=400, reports=200)
    for text in ("The lesion area is in the left frontal lobe.", "Ödem? 3×4 mm – naïve"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
