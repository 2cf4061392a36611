"""What the phases minimise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from braingemma.model.braingemma3d import BrainGemma3D
from training.data.reports import Batch
from training.data.targets import findings_weight
from training.errors import SettingsError

GROUNDING_SCALE = 20.0
"""One lesion fills few patches: the mean over all patches is small, so it is scaled up beside the other losses."""
PART_WEIGHTS = (1.0, 2.0, 6.0, 10.0)
"""Of edema, core, necrosis and lost ventricle: the fewer voxels a part has, the less it would count."""


def grounding_loss(logits: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of shares in [0, 1], of the lesion in a patch; logits of the same shape."""
    return GROUNDING_SCALE * F.binary_cross_entropy_with_logits(logits, share)


def parts_loss(logits: Tensor, share: Tensor) -> Tensor:
    """`grounding_loss` of each part's shares, `PART_WEIGHTS` times; both (..., parts * 8) as `cell_shares` gives."""
    raw = F.binary_cross_entropy_with_logits(logits, share, reduction="none")
    weights = torch.tensor(PART_WEIGHTS, device=raw.device).repeat_interleave(raw.shape[-1] // len(PART_WEIGHTS))
    return GROUNDING_SCALE * (raw * weights).mean()


def findings_loss(logits: Tensor, target: Tensor, whole: Tensor | None = None) -> Tensor:
    """Cross-entropy of presence, sides and sites; (B, findings, outputs), NaN targets carry no loss.

    Presence and sides weigh as much together as all sites. Where this is one part of a step's batch, `whole` holds the
    targets of all of it, so that the mean over the parts is the loss of the whole.
    """
    weight = _balanced_weight(target)
    total = weight.sum()
    if whole is not None and len(whole) != len(target):
        total = _balanced_weight(whole).sum() * (len(target) / len(whole))
    raw = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(target), reduction="none")
    return (raw * weight).sum() / total.clamp(min=1.0)


def _balanced_weight(target: Tensor) -> Tensor:
    weight = findings_weight(target)
    weight[..., :3] = weight[..., :3] * 3.0
    return weight


def pairwise_sigmoid_loss(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's contrast (arXiv 2303.15343, eq. 1): each pair on its own, so one image against a queue of texts learns.

    Args:
        images: (B, E).
        texts: (M, E), M >= B: the batch's own texts first, then any from a queue.
        same: (B, M) whether image and text say the same: those beside the diagonal are left out, not negatives.
        scale: Log of the temperature's inverse, ().
        bias: ().
    """
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * scale.exp() + bias
    own = torch.zeros_like(same)
    own.fill_diagonal_(True)
    sign = torch.where(own, 1.0, -1.0)
    kept = own | ~same
    return -(F.logsigmoid(sign * logits) * kept).sum() / images.shape[0]


def infonce_loss(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4): each image's own text among all.

    The texts come from a frozen language model, so there is nothing to learn in the other direction of CLIP's loss.

    Args:
        images: (B, E).
        texts: (M, E), M >= B: the batch's own texts first, then others.
        same: (B, M) whether image and text say the same: those beside the diagonal are left out, not negatives.
        scale: Log of the temperature's inverse, (), at most log 100 as in CLIP (arXiv 2103.00020).
    """
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * scale.exp().clamp(max=100.0)
    own = torch.zeros_like(same)
    own.fill_diagonal_(True)
    logits = logits.masked_fill(same & ~own, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(images), device=images.device))


def same_findings(first: Tensor, second: Tensor) -> Tensor:
    """(B, M): whether two cases have equal findings, from targets (B, F, O) and (M, F, O)."""
    a, b = (torch.nan_to_num(t, nan=0.5).flatten(1) for t in (first, second))
    return (a[:, None] == b[None]).all(dim=-1)


# ---- further losses


@dataclass(frozen=True)
class Seen:
    """What a further loss may look at.

    Attributes:
        model: With gradients through what the phase trains.
        batch: See the phase.
        tokens: (B, N, R) of the resampler.
        features: (B, d, h, w, C) of the encoder, or (B, K, C) of some patches; None where a phase starts at the tokens.
    """

    model: BrainGemma3D
    batch: Batch
    tokens: Tensor
    features: Tensor | None


Loss = Callable[[Seen], Tensor]
LOSSES: Final[dict[str, Loss]] = {}
_OWN: Final = ("loss", "grounding", "parts", "findings", "contrast", "caption")


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Make a loss known under `name`; a phase adds it with `[phase1.losses] name = weight`.

    Raises:
        SettingsError: the name is taken.
    """
    if name in _OWN or name in LOSSES:
        raise SettingsError(f"a loss is called {name} already")

    def register(loss: Loss) -> Loss:
        LOSSES[name] = loss
        return loss

    return register


def further_losses(seen: Seen, weights: dict[str, float]) -> dict[str, Tensor]:
    """The losses that a phase names beside its own."""
    return {name: LOSSES[name](seen) for name in weights}


def check_losses(phase: str, weights: dict[str, float]) -> None:
    """Whether all are known.

    Raises:
        SettingsError: names those that are not.
    """
    unknown = sorted(set(weights) - set(LOSSES))
    if unknown:
        known = ", ".join(sorted(LOSSES)) or "none"
        raise SettingsError(
            f"{phase}.losses: no loss is registered as {', '.join(unknown)}; registered: {known} (see plugins)"
        )
