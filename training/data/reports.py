"""Reports of a batch: their words, their tokens, and what the frozen language model makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from braingemma.findings.vocabulary import mirror_text, mirrored_findings
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.language import IGNORE
from training.data.cases import Cases
from training.phantoms.wording import write_report

Batch = dict[str, Tensor]


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


@torch.no_grad()
def text_embeddings(model: BrainGemma3D, batch: Batch) -> Tensor:
    """(M, E): the frozen language model's mean hidden state over each report of a `training_batch`."""
    mask = (batch["labels"] != IGNORE) & (batch["input_ids"] >= 0)
    body = model.language_model.model(
        input_ids=batch["input_ids"].clamp(min=0), attention_mask=batch["attention_mask"]
    ).last_hidden_state
    return (body * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def embed_reports(model: BrainGemma3D, texts: Sequence[str], size: int = 16) -> Tensor:
    """(M, E) float32 embeddings of many reports, on the CPU."""
    parts = []
    for start in range(0, len(texts), size):
        batch = {k: v.to(model.compute_device) for k, v in model.training_batch(texts[start : start + size]).items()}
        parts.append(text_embeddings(model, batch).float().cpu())
    return torch.cat(parts)


class ReportBank:
    """Embeddings (2, N, E) of the cases' reports, as they are and mirrored: the language model is frozen."""

    def __init__(self, cases: Cases, model: BrainGemma3D) -> None:
        self.embeddings = torch.stack(
            [embed_reports(model, cases.reports), embed_reports(model, [mirror_text(text) for text in cases.reports])]
        )

    def take(self, index: Sequence[int], flips: Sequence[bool]) -> Tensor:
        """(M, E) of these cases."""
        return self.embeddings[torch.tensor(flips, dtype=torch.long), torch.tensor(index, dtype=torch.long)]
