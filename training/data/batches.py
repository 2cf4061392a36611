"""Batches for the phases: volumes with masks, targets and reports, or resampler tokens made once and kept."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from braingemma.findings.vocabulary import mirror_text, mirrored_findings
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.language import IGNORE
from training.data.augment import Augmentation, flip_where
from training.data.cases import Cases
from training.data.patches import focus
from training.data.targets import findings_target, mirrored_target
from training.phantoms.wording import write_report
from training.settings import PhaseSettings


def reports_for(cases: Cases, index: list[int], flips: list[bool], rng: np.random.Generator) -> list[str]:
    """Reports of these cases, mirrored where flipped; those of phantoms are worded anew each time."""
    texts = []
    for i, flip in zip(index, flips, strict=True):
        if cases.synthetic:
            findings = mirrored_findings(cases.findings[i]) if flip else cases.findings[i]
            texts.append(write_report(findings, rng))
        else:
            texts.append(mirror_text(cases.reports[i]) if flip else cases.reports[i])
    return texts


def text_part(model: BrainGemma3D, texts: list[str], part: slice) -> Batch:
    """Ids, mask and labels of `texts[part]`; where that is not all, `part_tokens`, its even share of all tokens.

    A mean over each part's own tokens would weigh the words of short reports more.
    """
    batch: Batch = model.training_batch(texts[part])
    own = len(texts[part])
    if own < len(texts):
        tokens = (model.training_batch(texts)["labels"] != IGNORE).sum()
        batch["part_tokens"] = tokens * (own / len(texts))
    return batch


class VolumeSource:
    """Augmented volumes; half of them mirrored, with left and right exchanged in targets and text."""

    def __init__(self, cases: Cases, model: BrainGemma3D, settings: PhaseSettings) -> None:
        self.cases = cases
        self.model = model
        self.settings = settings
        self.augmentation = Augmentation()

    def __len__(self) -> int:
        return len(self.cases)

    def batch(self, index: list[int], step: int, part: slice) -> Batch:
        """Drawn for the whole step, then cut to this process's part, so that the cut does not change the draw."""
        seed = self.settings.seed * 1_000_003 + step
        rng = torch.Generator().manual_seed(seed)
        volumes, masks = self.cases.volumes[index].float(), self.cases.masks[index].float()
        targets = self.cases.targets[index]
        flip = torch.zeros(len(index), dtype=torch.bool)
        if self.settings.augment:
            limit = self.model.config.volume_settings.zscore_clip
            volumes, masks = self.augmentation.apply(volumes, masks, limit, rng)
            flip = torch.rand(len(index), generator=rng) < 0.5
            volumes, masks = flip_where(flip, volumes), flip_where(flip, masks)
            targets = torch.where(flip[:, None, None], mirrored_target(targets), targets)
        batch: Batch = {"volumes": volumes[part], "masks": masks[part], "targets": targets[part]}
        batch["all_targets"] = targets
        if step < self.settings.focus_steps:
            tower = self.model.vision
            seen = focus(tower.pad(masks, 0.0), tower.patch, self.settings.focus_patches, rng)
            batch["seen"] = seen[part]
        texts = reports_for(self.cases, index, flip.tolist(), np.random.default_rng([seed, 5]))
        if self.settings.name != "phase1":
            return {**batch, **text_part(self.model, texts, part)}
        if self.settings.contrast:
            own = torch.full((targets[part].shape[0],), part.start or 0)
            batch |= {**self.model.training_batch(texts), "own": own}
        return batch


class TokenSource:
    """Resampler tokens of each case, as it is and mirrored, made once: for phases that leave the vision alone."""

    def __init__(self, cases: Cases, model: BrainGemma3D, settings: PhaseSettings, copies: int = 2) -> None:
        self.cases = cases
        self.model = model
        self.settings = settings
        rng = torch.Generator().manual_seed(settings.seed)
        self.tokens = torch.stack([self._encode(flip=bool(n % 2), rng=rng) for n in range(2 * copies)])

    def __len__(self) -> int:
        return len(self.cases)

    def of(self, settings: PhaseSettings) -> TokenSource:
        """The same tokens for another phase that leaves the vision alone too: making them takes minutes."""
        other = copy.copy(self)
        other.settings = settings
        return other

    @torch.inference_mode()
    def _encode(self, *, flip: bool, rng: torch.Generator) -> Tensor:
        limit = self.model.config.volume_settings.zscore_clip
        parts = []
        for start in range(0, len(self.cases), 32):
            rows = slice(start, start + 32)
            volumes, _ = Augmentation().apply(self.cases.volumes[rows], self.cases.masks[rows], limit, rng)
            volumes = volumes.flip(-1) if flip else volumes
            features = self.model.patch_features(volumes.to(self.model.compute_device))
            parts.append(self.model.resample(features).half().cpu())
        return torch.cat(parts)

    def batch(self, index: list[int], step: int, part: slice) -> Batch:
        """Tokens of a random copy of each case, odd copies being mirrored, with a report that fits."""
        rng = np.random.default_rng([self.settings.seed, step])
        copies = rng.integers(len(self.tokens), size=len(index))
        texts = reports_for(self.cases, index, [bool(c % 2) for c in copies], rng)
        tokens = self.tokens[torch.from_numpy(copies), torch.tensor(index)].float()
        targets = self.cases.targets[index]
        flip = torch.from_numpy(copies % 2 == 1)
        targets = torch.where(flip[:, None, None], mirrored_target(targets), targets)
        batch: Batch = {"tokens": tokens[part], "targets": targets[part], "all_targets": targets}
        return {**batch, **text_part(self.model, texts, part)}


def validation_batch(cases: Cases, model: BrainGemma3D, seed: int = 0) -> Batch:
    """Every case as it is, for a fixed validation loss."""
    texts = reports_for(cases, list(range(len(cases))), [False] * len(cases), np.random.default_rng([seed, 17]))
    targets = torch.stack([findings_target(f) for f in cases.findings])
    return {
        "volumes": cases.volumes.float(),
        "masks": cases.masks.float(),
        "targets": targets,
        "all_targets": targets,
        **model.training_batch(texts),
    }


Batch = dict[str, Tensor]
