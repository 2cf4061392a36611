"""Cases as the model takes them: prepared once by the serving path, kept in files, augmented in batches."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import overload

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from braingemma.findings.vocabulary import Finding
from training.data.targets import findings_target
from training.errors import DataError


class Stack:
    """Tensors (n, ...) of several files as one of (N, ...): memory-mapped, each read when it is asked for."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self), *self.parts[0].shape[1:])

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> Tensor: ...
    def __getitem__(self, index: int | slice | Sequence[int]) -> Tensor:
        """One case, as it lies in its file, or a copy (n, ...) of several."""
        if isinstance(index, int):
            place = index + len(self) if index < 0 else index
            if not 0 <= place < len(self):
                raise IndexError(f"expected a case below {len(self)}, got {index}")
            part = bisect_right(self._ends, place)
            return self.parts[part][place - self._ends[part]]
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        rows = [self[int(i)] for i in chosen]
        return torch.stack(rows) if rows else self.parts[0][:0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


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

    volumes: Tensor | Stack
    masks: Tensor | Stack
    targets: Tensor
    findings: tuple[tuple[Finding, ...], ...]
    reports: tuple[str, ...]
    synthetic: bool = True

    def __len__(self) -> int:
        return len(self.reports)

    def select(self, index: Sequence[int]) -> Cases:
        """The cases at these positions, in memory."""
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
        """All cases of several sets, in order; what lies in files stays there."""
        return Cases(
            Stack([t for p in parts for t in _pieces(p.volumes)]),
            Stack([t for p in parts for t in _pieces(p.masks)]),
            torch.cat([p.targets for p in parts]),
            tuple(f for p in parts for f in p.findings),
            tuple(r for p in parts for r in p.reports),
            all(p.synthetic for p in parts),
        )


def _pieces(tensors: Tensor | Stack) -> tuple[Tensor, ...]:
    return tensors.parts if isinstance(tensors, Stack) else (tensors,)


def save_cases(cases: Cases, file: Path) -> None:
    """Write cases to one safetensors file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "findings": json.dumps([[f.to_json() for f in case] for case in cases.findings]),
        "reports": json.dumps(cases.reports),
    }
    part = file.with_suffix(".part")
    tensors = {"volumes": cases.volumes[:].contiguous(), "masks": cases.masks[:].contiguous()}
    save_file(tensors, part, metadata=metadata)
    part.replace(file)


def load_cases(file: Path) -> Cases:
    """Open what `save_cases` wrote; the volumes stay in the file until they are read."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    if not metadata or "findings" not in metadata:
        raise DataError(f"{file}: expected prepared cases with findings and reports")
    findings = tuple(tuple(Finding.from_json(e) for e in case) for case in json.loads(metadata["findings"]))
    targets = torch.stack([findings_target(f) for f in findings])
    return Cases(tensors["volumes"], tensors["masks"], targets, findings, tuple(json.loads(metadata["reports"])))
