"""Med3DVLM, a generalist for 3D volumes (Xin et al., arXiv 2503.20047), from a local checkpoint folder.

Its architecture is no part of transformers: it comes as code beside the weights, which runs with all rights of this
process. So nothing is loaded before that is allowed by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from braingemma.checkpoint.load import resolve_device
from braingemma.checkpoint.weights import read_json
from training.errors import SettingsError
from training.evaluation.baselines.pictures import volume_cube
from training.evaluation.reporters import Reading, mirror_image

PATCH_MARK: Final = "<im_patch>"
"""One stands in the prompt for each token of the picture (its own demonstration code)."""
QUESTION: Final = "Generate a radiology report for this brain MRI FLAIR scan."
_SIZE: Final = (128, 256, 256)
"""Depth, height, width, and tokens of the picture, where the checkpoint's configuration does not say."""
_TOKENS: Final = 256


class Med3DVLM:
    """Writes reports from whole volumes."""

    def __init__(
        self, folder: Path, *, trust_remote_code: bool, max_new_tokens: int = 256, device: str = "auto"
    ) -> None:
        """Load the checkpoint.

        Args:
            folder: Weights, tokenizer and the code that `auto_map` of `config.json` names.
            trust_remote_code: Whether that code may run.
            max_new_tokens: Of a report.
            device: "auto", "cpu" or "cuda".

        Raises:
            SettingsError: the code was not allowed to run, or the folder does not hold such a model.
        """
        stated = read_json(folder / "config.json")
        if "AutoModelForCausalLM" not in stated.get("auto_map", {}):
            raise SettingsError(f"{folder}: config.json names no code for AutoModelForCausalLM (auto_map): no Med3DVLM")
        if not trust_remote_code:
            code = stated["auto_map"]["AutoModelForCausalLM"]
            raise SettingsError(
                f"{folder}: Med3DVLM runs code of its folder ({code}): read it, then --trust-remote-code"
            )
        target = resolve_device(device)
        dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
        options = {"trust_remote_code": True, "local_files_only": True}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        tower = folder / "vision_tower.bin"
        if tower.exists():  # published apart from the rest
            state = torch.load(tower, map_location="cpu", weights_only=True)
            self.model.get_model().vision_tower.load_state_dict(state)
        self.model.to(target).eval()
        if PATCH_MARK not in self.tokenizer.get_vocab():
            raise SettingsError(f"{folder}: the tokenizer has no {PATCH_MARK}: no Med3DVLM")
        self.folder, self.max_new_tokens = folder, max_new_tokens

    @property
    def name(self) -> str:
        """Row of the table."""
        return f"Med3DVLM ({self.folder.resolve().name})"

    def read(self, image: Any, _name: str, /, *, flip: bool) -> Reading:
        """Report the picture, and its mirror image."""
        return Reading(self._report(image), self._report(mirror_image(image)) if flip else None)

    @torch.inference_mode()
    def _report(self, image: Any) -> str:
        config = self.model.get_model().config
        size = getattr(config, "input_size", None) or getattr(config, "img_size", None) or _SIZE
        cube = volume_cube(image, (int(size[0]), int(size[1]), int(size[2]))).to(self.model.device, self.model.dtype)
        prompt = PATCH_MARK * int(getattr(config, "proj_out_num", None) or _TOKENS) + QUESTION
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"].to(self.model.device)
        written = self.model.generate(images=cube, inputs=ids, max_new_tokens=self.max_new_tokens, do_sample=False)
        return str(self.tokenizer.batch_decode(written, skip_special_tokens=True)[0]).strip()
