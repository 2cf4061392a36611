"""The demo model's own small tokenizer, and findings drawn at random for text-only training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from braingemma.configuration import CANONICAL_PROMPT
from braingemma.findings.vocabulary import FINDINGS, SITES, Finding, Laterality
from training.phantoms.wording import write_report

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
_SIDES: Final[tuple[Laterality, ...]] = ("left", "right", "bilateral")
_NEIGHBOURS: Final = {
    "frontal": ("parietal", "temporal", "insula", "corpus callosum"),
    "parietal": ("frontal", "temporal", "occipital", "corpus callosum"),
    "temporal": ("frontal", "parietal", "occipital", "insula"),
    "occipital": ("parietal", "temporal", "cerebellum"),
    "insula": ("frontal", "temporal", "parietal"),
    "cerebellum": ("brainstem", "occipital"),
    "brainstem": ("cerebellum", "thalamus"),
    "thalamus": ("brainstem", "temporal", "parietal"),
    "corpus callosum": ("frontal", "parietal"),
}
"""Sites that lie beside each other: a lesion reaches from one into the next."""
_WEIGHTS: Final = (0.28, 0.22, 0.22, 0.1, 0.04, 0.06, 0.03, 0.03, 0.02)


def draw_findings(rng: np.random.Generator, healthy_share: float = 0.3) -> tuple[Finding, ...]:
    """Findings that could belong to one case, without a picture: side, neighbouring sites, presence."""
    if rng.random() < healthy_share:
        return tuple(Finding(name, "absent") for name in FINDINGS)
    side = _SIDES[int(rng.choice(3, p=[0.43, 0.43, 0.14]))]
    sites = _draw_sites(rng)
    found = [Finding("lesion", "present", side, sites)]
    for name, share in (("edema", 0.7), ("necrosis", 0.55)):
        if rng.random() < share:
            kept = tuple(site for site in sites if rng.random() < 0.8) or sites
            other = side if side != "bilateral" or rng.random() < 0.7 else _SIDES[int(rng.integers(2))]
            found.append(Finding(name, "present", other, kept))
        else:
            found.append(Finding(name, "absent"))
    if rng.random() < 0.35:
        found.append(Finding("ventricular_compression", "present", side, ("ventricle",)))
    else:
        found.append(Finding("ventricular_compression", "absent"))
    return tuple(found)


def _draw_sites(rng: np.random.Generator) -> tuple[str, ...]:
    names = list(_NEIGHBOURS)
    chosen = {str(rng.choice(names, p=np.array(_WEIGHTS)))}
    while len(chosen) < 4 and rng.random() < 0.45:
        chosen.add(str(rng.choice(_NEIGHBOURS[str(rng.choice(sorted(chosen)))])))
    return tuple(site for site in SITES if site in chosen)


def build_tokenizer(vocabulary: int = 640, seed: int = 0, reports: int = 4000) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on reports of the grammar: every text can be written, reports take few tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, reports), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )


def _corpus(seed: int, reports: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for _ in range(reports):
        yield CANONICAL_PROMPT
        yield write_report(draw_findings(rng), rng)
