"""Cases as the model takes them: prepared once by the serving path, kept in memory, augmented in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from braingemma.findings.vocabulary import Finding
from training.data.targets import findings_target
from training.errors import DataError


@dataclass(frozen=True)
class Cases:
    """Prepared cases.

    Attributes:
        volumes: (N, 1, D, H, W) float16, as `prepare_image` gives them.
        masks: (N, parts, D, H, W) bool on the same grid, parts as in `training.phantoms.lesions.PARTS`.
        targets: (N, findings, outputs), see `findings_target`.
        findings: The truth of each case.
        reports: Its reference report.
        synthetic: Whether the grammar may word each report anew.
    """

    volumes: Tensor
    masks: Tensor
    targets: Tensor
    findings: tuple[tuple[Finding, ...], ...]
    reports: tuple[str, ...]
    synthetic: bool = True

    def __len__(self) -> int:
        return len(self.reports)

    def select(self, index: Sequence[int]) -> Cases:
        """The cases at these positions."""
        chosen = list(index)
        return Cases(
            self.volumes[chosen],
            self.masks[chosen],
            self.targets[chosen],
            tuple(self.findings[i] for i in chosen),
            tuple(self.reports[i] for i in chosen),
            self.synthetic,
        )

    @staticmethod
    def join(parts: Sequence[Cases]) -> Cases:
        """All cases of several sets, in order."""
        return Cases(
            torch.cat([p.volumes for p in parts]),
            torch.cat([p.masks for p in parts]),
            torch.cat([p.targets for p in parts]),
            tuple(f for p in parts for f in p.findings),
            tuple(r for p in parts for r in p.reports),
            all(p.synthetic for p in parts),
        )


def save_cases(cases: Cases, file: Path) -> None:
    """Write cases to one safetensors file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "findings": json.dumps([[f.to_json() for f in case] for case in cases.findings]),
        "reports": json.dumps(cases.reports),
    }
    part = file.with_suffix(".part")
    save_file({"volumes": cases.volumes, "masks": cases.masks}, part, metadata=metadata)
    part.replace(file)


def load_cases(file: Path) -> Cases:
    """Read what `save_cases` wrote."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    if not metadata or "findings" not in metadata:
        raise DataError(f"{file}: expected prepared cases with findings and reports")
    findings = tuple(tuple(Finding.from_json(e) for e in case) for case in json.loads(metadata["findings"]))
    targets = torch.stack([findings_target(f) for f in findings])
    return Cases(tensors["volumes"], tensors["masks"], targets, findings, tuple(json.loads(metadata["reports"])))
