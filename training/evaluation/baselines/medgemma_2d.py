"""MedGemma 1.5 on axial slices: pictures and text interleaved through the chat template of its own processor.

Source: MedGemma's model card and its notebook on CT volumes: an instruction, then each slice with its number, then the
question; slices evenly spread. Any `Gemma3ForConditionalGeneration` folder with its processor will do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from braingemma.checkpoint.load import resolve_device
from braingemma.checkpoint.weights import read_json
from braingemma.errors import CheckpointError, GenerationError
from training.errors import SettingsError
from training.evaluation.baselines.pictures import axial_slices
from training.evaluation.reporters import Reading, mirror_image

SLICES: Final = 16
"""Pictures of each volume."""
ARCHITECTURE: Final = "Gemma3ForConditionalGeneration"
INSTRUCTION: Final = (
    "You are a neuroradiologist. The images are axial slices of one brain MRI (FLAIR), from bottom to top, in "
    "radiological convention: the left of each image is the patient's right."
)
QUESTION: Final = (
    "Generate a radiology report for this brain MRI FLAIR scan in four sentences, in this order: the lesion area with "
    "its side and lobes, edema, necrosis, ventricular compression. State what is not present."
)


class MedGemma2D:
    """Writes reports from slices."""

    def __init__(self, folder: Path, *, slices: int = SLICES, max_new_tokens: int = 256, device: str = "auto") -> None:
        """Load the checkpoint.

        Args:
            folder: Model and processor, as transformers writes them.
            slices: Pictures of each volume; each costs the processor's tokens for an image (256 for Gemma 3).
            max_new_tokens: Of a report.
            device: "auto", "cpu" or "cuda".

        Raises:
            SettingsError: the folder holds another architecture, or no processor.
            CheckpointError: weights are missing from it.
        """
        stated = read_json(folder / "config.json").get("architectures") or []
        if ARCHITECTURE not in stated:
            raise SettingsError(f"{folder}: expected a {ARCHITECTURE}, got {', '.join(stated) or 'no architecture'}")
        try:
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{folder}: no readable processor: {' '.join(str(error).split())[:200]}") from error
        target = resolve_device(device)
        dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
        model, info = Gemma3ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        if info["missing_keys"]:
            raise CheckpointError(f"{folder}: weights are missing: {', '.join(sorted(info['missing_keys'])[:5])}")
        self.model: Any = model.to(target).eval()
        self.slices, self.max_new_tokens = slices, max_new_tokens
        self.folder = folder

    @property
    def name(self) -> str:
        """Row of the table."""
        return f"MedGemma 2D ({self.folder.resolve().name}, {self.slices} slices)"

    def read(self, image: Any, name: str, /, *, flip: bool) -> Reading:
        """Report the picture, and its mirror image."""
        report = self._report(image, name)
        return Reading(report, self._report(mirror_image(image), name) if flip else None)

    def messages(self, image: Any) -> list[dict[str, Any]]:
        """The conversation: instruction, numbered slices, question."""
        content: list[dict[str, Any]] = [{"type": "text", "text": INSTRUCTION}]
        for number, picture in enumerate(axial_slices(image, self.slices), 1):
            content += [{"type": "image", "image": picture}, {"type": "text", "text": f"SLICE {number}"}]
        content.append({"type": "text", "text": QUESTION})
        return [{"role": "user", "content": content}]

    @torch.inference_mode()
    def _report(self, image: Any, name: str) -> str:
        inputs = self.processor.apply_chat_template(
            self.messages(image),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, dtype=self.model.dtype)
        limit = self.model.config.text_config.max_position_embeddings
        length = int(inputs["input_ids"].shape[1])
        if length + self.max_new_tokens > limit:
            raise GenerationError(f"{name}: {length} tokens do not fit into {limit}; use fewer slices")
        written = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return str(self.processor.decode(written[0, length:], skip_special_tokens=True)).strip()
