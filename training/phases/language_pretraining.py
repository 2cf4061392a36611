"""Stage 0 of the demo weights: a small Gemma 3 that learns, from text alone, to write what its prefix says.

Published weights come with a language model that can already write; the demo's must be made. It is trained with a
throw-away encoder of the findings in the place of the visual tokens, so that once frozen it can be steered by them:
a small model that is taught captions together with the vision tower learns to ignore the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from braingemma.configuration import FINDING_OUTPUTS, FINDINGS, BrainGemmaConfig
from braingemma.model import language
from braingemma.model.braingemma3d import BrainGemma3D
from training.data.targets import findings_target
from training.phantoms.wording import write_report
from training.phases.run_folder import RunFolder
from training.phases.tokenizer import draw_findings
from training.progress import Progress
from training.settings import LanguageSettings, TrainingSettings


class FindingPrefix(nn.Module):
    """Findings (B, findings, outputs) to as many prefix tokens as there are visual tokens; thrown away afterwards."""

    def __init__(self, config: BrainGemmaConfig) -> None:
        super().__init__()
        self.shape = (config.num_visual_tokens, config.text_config.hidden_size)
        inputs = len(FINDINGS) * len(FINDING_OUTPUTS)
        self.mlp = nn.Sequential(nn.Linear(inputs, 256), nn.GELU(), nn.Linear(256, self.shape[0] * self.shape[1]))

    def forward(self, target: Tensor) -> Tensor:
        """(B, findings, outputs) to (B, N, E)."""
        return self.mlp(target.flatten(1) * 2 - 1).view(-1, *self.shape)


def pretrain_language(
    model: BrainGemma3D, settings: LanguageSettings, log: Callable[[int, float], None] = lambda _s, _l: None
) -> FindingPrefix:
    """Train the language model in place and freeze it; the prefix encoder is returned for inspection."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 31])
    prefix = FindingPrefix(model.config)
    model.language_model.requires_grad_(True)  # whoever made the model may have frozen all of it
    parameters = [*model.language_model.parameters(), *prefix.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=settings.learning_rate,
        total_steps=settings.steps,
        pct_start=min(0.3, settings.warmup / max(settings.steps, 1)),
    )
    model.language_model.train()
    for step in range(settings.steps):
        batch, target = _text_batch(model, rng, settings.batch)
        # A little noise on the prefix: the visual tokens will never be as clean as these.
        tokens = prefix((target + 0.1 * torch.randn_like(target)).clamp(-0.2, 1.2))
        loss = text_loss(model, tokens, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        log(step, float(loss.detach()))
    model.language_model.requires_grad_(False)
    model.language_model.eval()
    return prefix


def _text_batch(model: BrainGemma3D, rng: np.random.Generator, size: int) -> tuple[dict[str, Tensor], Tensor]:
    findings = [draw_findings(rng) for _ in range(size)]
    batch = model.training_batch([write_report(f, rng) for f in findings])
    return batch, torch.stack([findings_target(f) for f in findings])


def text_loss(model: BrainGemma3D, tokens: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Next-token loss of reports after visual or stand-in tokens (B, N, E)."""
    embeddings = language.embed_with_image(model.language_model, batch["input_ids"], tokens)
    output: Any = model.language_model(
        inputs_embeds=embeddings, attention_mask=batch["attention_mask"], labels=batch["labels"]
    )
    return output.loss


def language_stage(model: BrainGemma3D, settings: TrainingSettings, run: RunFolder, progress: Progress) -> None:
    """Text-only training, or what an earlier start of this run left of it: weights, and the generator's state.

    What the phases add for themselves is drawn from that state on, the same when a run goes on as when it does not.
    """
    kept = run.root / "language.safetensors"
    if kept.exists():
        tensors = load_file(kept)
        torch.set_rng_state(tensors.pop(_GENERATOR))
        model.language_model.load_state_dict(tensors, strict=False)
        return
    history: list[dict[str, float]] = []

    def log(step: int, loss: float) -> None:
        history.append({"step": float(step + 1), "loss": loss})
        progress("language", step + 1, settings.language.steps, {"loss": loss})

    if settings.language.steps:
        pretrain_language(model, settings.language, log)
        run.write_history("language", history)
    own = {n: p.contiguous() for n, p in model.language_model.named_parameters()}
    part = kept.with_suffix(".part")
    save_file({**own, _GENERATOR: torch.get_rng_state()}, part)
    part.replace(kept)


_GENERATOR: Final = "generator_state"
