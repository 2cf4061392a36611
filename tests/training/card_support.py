"""The card's data and base models, fabricated at tiny size: BraTS, TextBraTS, a BIDS folder, SigLIP and Gemma 3."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, SiglipVisionModel

import training
from tests.braingemma.tiny_models import tiny_config, tiny_tokenizer
from training.data.public_data import manifest
from training.phantoms.phantom import make_phantom, write_phantom

CARD = Path(training.__file__).parent / "configs" / "card.toml"
TINY_CARD = """
include = ["{card}"]
[model]
vision = "{root}/vision"
text = "{root}/text"
patch_depth = 4
resampler_heads = 4
num_visual_tokens = 8
[model.volume]
grid = [16, 32, 32]
brain_extraction = "none"
[data]
manifest = "{root}/manifest.jsonl"
workers = 1
[phase1]
epochs = 0
batch = 8
steps = 5
validate_every = 2
warmup = 1
[phase2a]
epochs = 0
batch = 8
steps = 4
validate_every = 2
warmup = 1
[phase2b]
epochs = 0
batch = 8
steps = 4
validate_every = 2
warmup = 1
"""


def fabricate_card(root: Path, patients: int = 12, controls: int = 8) -> Path:
    """Everything that the card's configuration reads; returns one that includes it, smaller in its sizes."""
    torch.manual_seed(0)
    config = tiny_config()
    SiglipVisionModel(config.vision_config).save_pretrained(root / "vision")
    Gemma3ForCausalLM(config.text_config).save_pretrained(root / "text")
    tiny_tokenizer().save_pretrained(root / "text")
    for number in range(1, patients + 1):
        case = f"BraTS20_Training_{number:03d}"
        phantom = make_phantom(number, spacing=6.0, stripped=True, with_lesion=True)
        write_phantom(root / "drawn", phantom)
        folder, text = root / "brats" / case, root / "textbrats" / case / f"{case}_flair_text.txt"
        folder.mkdir(parents=True)
        text.parent.mkdir(parents=True)
        shutil.move(root / "drawn" / "flair.nii.gz", folder / f"{case}_flair.nii.gz")
        shutil.move(root / "drawn" / "lesion.nii.gz", folder / f"{case}_seg.nii.gz")
        text.write_text(str(phantom.truth["report"]), encoding="utf-8")
    for number in range(controls):
        write_phantom(root / "drawn", make_phantom(500 + number, spacing=6.0, stripped=True, with_lesion=False))
        folder = root / "controls" / f"sub-{number:06d}" / "ses-01" / "anat"
        folder.mkdir(parents=True)
        shutil.move(root / "drawn" / "flair.nii.gz", folder / f"sub-{number:06d}_ses-01_FLAIR.nii.gz")
    folders = {"brats": root / "brats", "reports": root / "textbrats", "controls": root / "controls"}
    manifest(root / "manifest.jsonl", splits=None, **folders)
    path = root / "card.toml"
    path.write_text(TINY_CARD.replace("{card}", str(CARD)).replace("{root}", str(root)))
    return path
