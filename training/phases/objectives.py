"""The phases' losses: what goes through the model, and what is minimised.

Phase 1 grounds the vision (dense lesion share, findings, contrast with the report; language model frozen); phases 2A
and 2B teach the projector, then also the adapters, to let the frozen language model write the report.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from braingemma.model import language
from braingemma.model.braingemma3d import COMPONENTS, BrainGemma3D
from braingemma.model.resampler import PerceiverResampler
from braingemma.model.vision import InflatedVisionTower
from training.data.patches import cell_shares, patch_share
from training.data.reports import Batch, text_embeddings
from training.errors import SettingsError
from training.phantoms.lesions import PARTS
from training.phases.losses import (
    Seen,
    check_losses,
    findings_loss,
    further_losses,
    grounding_loss,
    infonce_loss,
    pairwise_sigmoid_loss,
    parts_loss,
    same_findings,
)
from training.settings import PhaseSettings


class Phase(nn.Module):
    """A model with what a phase adds to it; `forward` gives named losses, of which "loss" is minimised."""

    def __init__(self, model: BrainGemma3D, settings: PhaseSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        check_losses(settings.name, settings.losses)
        if "lora" in settings.trainable and not model.config.lora:
            model.add_lora()

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the phase adds and that are thrown away after it."""
        return iter(())

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Freeze everything, free what the settings name, and give it by name.

        Raises:
            SettingsError: a part that is to be trained does not exist in this model.
        """
        self.requires_grad_(False)
        chosen: dict[str, list[nn.Parameter]] = {}
        for name in self.settings.trainable:
            part = list(self.own_parameters() if name == "auxiliary" else self.model.component_parameters(name))
            if not part:
                raise SettingsError(f"{self.settings.name}: this model has no {name} to train")
            chosen[name] = part
        for parameter in (parameter for part in chosen.values() for parameter in part):
            if parameter.dtype != torch.float32:
                raise SettingsError(f"{self.settings.name}: trained parameters must be float32, got {parameter.dtype}")
            parameter.requires_grad_(True)
        return chosen

    def describe(self) -> dict[str, int]:
        """Trainable numbers in each part."""
        counts = {
            name: sum(p.numel() for p in self.model.component_parameters(name) if p.requires_grad)
            for name in COMPONENTS
        }
        counts["auxiliary"] = sum(p.numel() for p in self.own_parameters() if p.requires_grad)
        return {name: count for name, count in counts.items() if count}


class GroundingPhase(Phase):
    """Phase 1. Maps from features to text and to parts of the lesion are its own, and are thrown away after it."""

    def __init__(self, model: BrainGemma3D, settings: PhaseSettings) -> None:
        super().__init__(model, settings)
        width = model.config.text_config.hidden_size
        self.to_text = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.to_parts = nn.Linear(model.config.vision_config.hidden_size, 8 * len(PARTS))
        # Parts are rare: at even odds their loss would swamp all others for the first steps.
        nn.init.constant_(self.to_parts.bias, -4.0)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """The contrast's map, temperature and bias, and the map from patch features to the parts of the lesion."""
        yield from (*self.to_text.parameters(), self.log_scale, self.bias, *self.to_parts.parameters())

    def forward(self, batch: Batch) -> Batch:
        """Losses of a batch with `volumes`, `masks`, `targets`, and the report's `input_ids`, `attention_mask`."""
        model, settings = self.model, self.settings
        seen = batch.get("seen")
        features, tokens = self._look(batch["volumes"], seen)
        losses: Batch = {}
        masks = model.vision.pad(batch["masks"].float(), 0.0) if "masks" in batch else None
        logits = model.grounding_logits(features) if settings.grounding else None
        if logits is not None and masks is not None:
            share = patch_share(masks, model.vision.patch, tuple(logits.shape[1:]) if seen is None else None)
            losses["grounding"] = grounding_loss(logits, _taken(share, seen))
        if settings.parts and masks is not None:
            shares = cell_shares(masks, model.vision.patch)
            losses["parts"] = parts_loss(self.to_parts(features), _taken(shares, seen))
        found = model.findings_logits(tokens)
        if found is not None and settings.findings:
            losses["findings"] = findings_loss(found, batch["targets"], batch.get("all_targets"))
        if settings.contrast:
            losses["contrast"] = self._contrast(model.projector(tokens), batch)
        losses |= further_losses(Seen(model, batch, tokens, features), settings.losses)
        weights = {name: getattr(settings, name) for name in losses if name not in settings.losses} | settings.losses
        losses["loss"] = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return losses

    def _look(self, volumes: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """(patch features, resampler tokens); of the patches `seen` (B, K) alone the features are (B, K, C)."""
        model = self.model
        if seen is None:
            features = model.patch_features(volumes)
            return features, model.resample(features)
        tower, resampler = model.vision, model.resampler
        if not (isinstance(tower, InflatedVisionTower) and isinstance(resampler, PerceiverResampler)):
            raise SettingsError("phase1.focus_steps need the Perceiver: the published pooling reads whole planes")
        patches = tower.embed(volumes)
        features = tower.encode(_taken(patches + tower.positions(), seen))
        places = resampler.positions(patches.shape[1:4]).to(features)
        return features, resampler.read(features, places[seen])

    def _contrast(self, visual: Tensor, batch: Batch) -> Tensor:
        """Pictures of this pass against the reports of the whole step, this pass's first, and further ones."""
        images = self.to_text(visual.mean(dim=1)).float()  # (B, E)
        texts = batch["texts"] if "texts" in batch else text_embeddings(self.model, batch)
        if "further_texts" in batch:
            texts = torch.cat([texts, batch["further_texts"].to(texts)])
        same = same_findings(batch["targets"], batch["text_targets"])
        with torch.autocast(images.device.type, enabled=False):
            if self.settings.contrast_loss == "infonce":
                return infonce_loss(images, texts.float(), same, self.log_scale)
            return pairwise_sigmoid_loss(images, texts.float(), same, self.log_scale, self.bias)


def _taken(values: Tensor, seen: Tensor | None) -> Tensor:
    """(B, d, h, w, ...) at the patches `seen` (B, K): (B, K, ...); all as they are where that is None."""
    if seen is None:
        return values
    flat = values.flatten(1, 3)
    index = seen.view(*seen.shape, *[1] * (flat.ndim - 2)).expand(*seen.shape, *flat.shape[2:])
    return flat.gather(1, index)


class CaptionPhase(Phase):
    """Phases 2A and 2B: next-token loss of the report, from volumes or from cached resampler tokens.

    A findings head reads the resampler's tokens: where those move, it is trained along.
    """

    def __init__(self, model: BrainGemma3D, settings: PhaseSettings) -> None:
        super().__init__(model, settings)
        if "resampler" in settings.trainable and "findings" not in settings.trainable and model.config.findings_head:
            raise SettingsError(
                f"{settings.name}: trainable has the resampler but not findings: the head would be left behind"
            )

    def forward(self, batch: Batch) -> Batch:
        """Losses of a batch with `volumes` or `tokens`, the report's ids, mask and labels, and `targets` for a head."""
        model = self.model
        tokens = batch["tokens"] if "tokens" in batch else model.resample(model.patch_features(batch["volumes"]))
        visual = model.projector(tokens)
        embeddings = language.embed_with_image(model.language_model, batch["input_ids"], visual)
        # A part of a step's batch has its share of the tokens: the mean over the parts is then the loss of the whole.
        share = {"num_items_in_batch": batch["part_tokens"]} if "part_tokens" in batch else {}
        output = model.language_model(
            inputs_embeds=embeddings,
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            use_cache=False,
            **share,
        )
        losses: Batch = {"caption": output.loss}
        logits = model.findings_logits(tokens) if "findings" in self.settings.trainable else None
        if logits is not None:
            losses["findings"] = findings_loss(logits, batch["targets"], batch.get("all_targets"))
        losses |= further_losses(Seen(model, batch, tokens, None), self.settings.losses)
        if len(losses) == 1:
            return {"loss": output.loss}
        weights = {"caption": 1.0, "findings": self.settings.findings, **self.settings.losses}
        losses["loss"] = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return losses


def make_phase(model: BrainGemma3D, settings: PhaseSettings) -> Phase:
    """The phase that the settings name."""
    return GroundingPhase(model, settings) if settings.name == "phase1" else CaptionPhase(model, settings)
