"""Batches for the phases: volumes with masks, targets and reports, or resampler tokens made once and kept.

What is drawn for a case depends on the seed, the step and its place in the step's batch alone: a process draws its own
part, and the same as when one process draws all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from braingemma.model.braingemma3d import BrainGemma3D
from training.data.augment import Augmentation, case_generator, move_masks
from training.data.cases import Cases
from training.data.patches import focus
from training.data.reports import Batch, ReportBank, embed_reports, reports_for, text_part
from training.data.targets import mirrored_target
from training.settings import PhaseSettings

__all__ = ["Batch", "TokenSource", "ValidationSource", "VolumeSource", "moves_tokens"]


def moves_tokens(settings: PhaseSettings) -> bool:
    """Whether a phase changes what the resampler gives."""
    return bool({"vision", "resampler"} & set(settings.trainable))


def needs_masks(settings: PhaseSettings) -> bool:
    """Whether a loss of the phase reads the lesion masks."""
    return settings.name == "phase1" and bool(settings.grounding or settings.parts)


def needs_texts(settings: PhaseSettings) -> bool:
    """Whether a phase holds pictures against embedded reports."""
    return settings.name == "phase1" and settings.contrast > 0


class VolumeSource:
    """Augmented volumes; half of them mirrored, with left and right exchanged in targets and text."""

    def __init__(self, cases: Cases, model: BrainGemma3D, settings: PhaseSettings) -> None:
        self.cases = cases
        self.model = model
        self.settings = settings
        self.augmentation = Augmentation()
        self.bank: ReportBank | None = None

    def __len__(self) -> int:
        return len(self.cases)

    def prepare(self) -> None:
        """Embed the reports that do not change from step to step."""
        wanted = needs_texts(self.settings) and (self.settings.negatives or not self.cases.synthetic)
        if wanted and self.bank is None:
            self.bank = ReportBank(self.cases, self.model)

    def batch(self, index: list[int], step: int, part: slice) -> Batch:
        """The cases `index[part]` of a step."""
        settings, rows = self.settings, range(len(index))[part]
        generators = [case_generator(settings.seed, step, place) for place in range(len(index))]
        flips = [bool(settings.augment and torch.rand((), generator=rng) < 0.5) for rng in generators]
        thetas = [self._theta(rng, flip=flip) for rng, flip in zip(generators, flips, strict=True)]
        targets = self._targets(index, flips)
        batch: Batch = {
            "volumes": torch.stack([self._volume(index[row], thetas[row], generators[row]) for row in rows]),
            "targets": targets[part],
            "all_targets": targets,
        }
        focused = step < settings.focus_steps
        if focused or needs_masks(settings):
            # Where to look is decided from the lesions of the whole batch.
            places = range(len(index)) if focused else rows
            masks = torch.stack([self._masks(index[row], thetas[row]) for row in places])
            batch["masks"] = masks[part] if focused else masks
            if focused:
                tower, rng = self.model.vision, case_generator(settings.seed, step, len(index))
                batch["seen"] = focus(tower.pad(masks, 0.0), tower.patch, settings.focus_patches, rng)[part]
        texts = reports_for(self.cases, index, flips, np.random.default_rng([settings.seed, step, 5]))
        if settings.name != "phase1":
            return {**batch, **text_part(self.model, texts, part)}
        return {**batch, **self._contrast(index, flips, texts, targets, step, rows)} if settings.contrast else batch

    def _theta(self, rng: torch.Generator, *, flip: bool) -> Tensor | None:
        return self.augmentation.draw(rng, flip=flip) if self.settings.augment else None

    def _volume(self, case: int, theta: Tensor | None, rng: torch.Generator) -> Tensor:
        volume = self.cases.volumes[case]
        if theta is None:
            return volume.float()
        return self.augmentation.volume(volume, theta, self.model.config.volume_settings, rng)

    def _masks(self, case: int, theta: Tensor | None) -> Tensor:
        masks = self.cases.masks[case]
        return masks.float() if theta is None else move_masks(masks, theta)

    def _targets(self, index: Sequence[int], flips: Sequence[bool]) -> Tensor:
        targets = self.cases.targets[list(index)]
        return torch.where(torch.tensor(flips, dtype=torch.bool)[:, None, None], mirrored_target(targets), targets)

    def _contrast(
        self, index: list[int], flips: list[bool], texts: list[str], targets: Tensor, step: int, rows: range
    ) -> Batch:
        """Reports to hold the pictures against: this part's first, then the step's others, then of further cases."""
        order = [*rows, *(row for row in range(len(index)) if row not in rows)]
        batch: Batch = {"text_targets": targets[order]}
        if self.cases.synthetic:
            batch |= self.model.training_batch([texts[row] for row in order])
        elif self.bank is not None:
            batch["texts"] = self.bank.take([index[row] for row in order], [flips[row] for row in order])
        if self.bank is not None and self.settings.negatives:
            rng = np.random.default_rng([self.settings.seed, step, 11])
            others = np.setdiff1d(np.arange(len(self.cases)), index)
            chosen = rng.permutation(others)[: self.settings.negatives].tolist()
            mirrored = (rng.random(len(chosen)) < 0.5).tolist() if self.settings.augment else [False] * len(chosen)
            batch["further_texts"] = self.bank.take(chosen, mirrored)
            batch["text_targets"] = torch.cat([batch["text_targets"], self._targets(chosen, mirrored)])
        return batch


class TokenSource:
    """Resampler tokens of each case, as it is and mirrored, made once: for phases that leave the vision alone.

    They are made by `prepare`, which takes minutes, so that a phase that is finished already goes without.
    """

    def __init__(self, cases: Cases, model: BrainGemma3D, settings: PhaseSettings, copies: int = 2) -> None:
        self.cases = cases
        self.model = model
        self.settings = settings
        self.copies = copies
        self._made: list[Tensor] = []  # one list for all that `of` gives

    def __len__(self) -> int:
        return len(self.cases)

    def prepare(self) -> None:
        """Make the tokens, where they are not there yet."""
        if not self._made:
            self._made.append(torch.stack([self._encode(copy) for copy in range(2 * self.copies)]))

    @property
    def tokens(self) -> Tensor:
        """(copies, N, tokens, R) float16; odd copies are mirrored."""
        self.prepare()
        return self._made[0]

    def of(self, settings: PhaseSettings) -> TokenSource:
        """The same tokens for another phase that leaves the vision alone too."""
        other = copy.copy(self)
        other.settings = settings
        return other

    @torch.inference_mode()
    def _encode(self, copy: int) -> Tensor:
        """(N, tokens, R) float16 of one copy; odd ones are mirrored."""
        source = VolumeSource(self.cases, self.model, self.settings)
        parts = []
        for start in range(0, len(self.cases), 16):
            volumes = []
            for case in range(start, min(start + 16, len(self.cases))):
                rng = case_generator(self.settings.seed, copy, case, 3)
                volumes.append(source._volume(case, source.augmentation.draw(rng, flip=bool(copy % 2)), rng))
            features = self.model.patch_features(torch.stack(volumes).to(self.model.compute_device))
            parts.append(self.model.resample(features).half().cpu())
        return torch.cat(parts)

    def batch(self, index: list[int], step: int, part: slice) -> Batch:
        """Tokens of a random copy of each case, odd copies being mirrored, with a report that fits."""
        rng = np.random.default_rng([self.settings.seed, step])
        copies = rng.integers(len(self.tokens), size=len(index))
        texts = reports_for(self.cases, index, [bool(c % 2) for c in copies], rng)
        tokens = self.tokens[torch.from_numpy(copies[part]), torch.tensor(index[part])].float()
        targets = self.cases.targets[index]
        flip = torch.from_numpy(copies % 2 == 1)
        targets = torch.where(flip[:, None, None], mirrored_target(targets), targets)
        batch: Batch = {"tokens": tokens, "targets": targets[part], "all_targets": targets}
        return {**batch, **text_part(self.model, texts, part)}


class ValidationSource:
    """Every case as it is, `size` at a time.

    The mean over the batches, by their shares, does not depend on `size`: each picture is held against the reports of
    all cases, and each part carries its share of words and findings. What no step of the phase changes is made once:
    embedded reports, and the tokens where the vision is left alone.
    """

    def __init__(self, cases: Cases, model: BrainGemma3D, settings: PhaseSettings, size: int) -> None:
        self.cases, self.model, self.settings, self.size = cases, model, settings, size
        everyone = list(range(len(cases)))
        rng = np.random.default_rng([settings.seed, 17])
        self.texts = reports_for(cases, everyone, [False] * len(cases), rng)
        self.embedded: Tensor | None = None
        self.tokens: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[float, Batch]]:
        """(share of all cases, batch)."""
        if self.embedded is None and needs_texts(self.settings):
            self.embedded = embed_reports(self.model, self.texts)
        for start in range(0, len(self.cases), self.size):
            part = slice(start, min(start + self.size, len(self.cases)))
            yield (part.stop - start) / len(self.cases), self._batch(part)

    def _batch(self, part: slice) -> Batch:
        targets = self.cases.targets
        batch: Batch = {"targets": targets[part], "all_targets": targets, **self._pictures(part)}
        if needs_masks(self.settings):
            batch["masks"] = self.cases.masks[part].float()
        if self.embedded is not None:
            batch["texts"] = self.embedded.roll(-part.start, dims=0)  # this part's first
            batch["text_targets"] = targets.roll(-part.start, dims=0)
        elif self.settings.name != "phase1":
            batch |= text_part(self.model, self.texts, part)
        return batch

    @torch.no_grad()
    def _pictures(self, part: slice) -> Batch:
        if moves_tokens(self.settings):
            return {"volumes": self.cases.volumes[part].float()}
        if part.start not in self.tokens:
            volumes = self.cases.volumes[part].float().to(self.model.compute_device)
            self.tokens[part.start] = self.model.resample(self.model.patch_features(volumes)).float().cpu()
        return {"tokens": self.tokens[part.start]}
