"""BrainGemma3D: the boxes of the model's figure, composed.

```
volume (B, 1, D, H, W) → vision → patch features (B, d, h, w, C) → resampler → tokens (B, N, R) → projector
  → visual tokens (B, N, E) → language model → report
patch features → grounding head        tokens → findings head
```
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from braingemma.checkpoint import load as checkpoint
from braingemma.checkpoint.save import save
from braingemma.checkpoint.weights import WeightsInfo
from braingemma.configuration import FINDING_OUTPUTS, FINDINGS, BrainGemmaConfig
from braingemma.errors import GenerationError
from braingemma.model import language
from braingemma.model.encoders import make_encoder
from braingemma.model.heads import FindingsHead, GroundingHead
from braingemma.model.language import GenerationSettings, Progress
from braingemma.model.large_volume import large_volumes
from braingemma.model.projector import Projector
from braingemma.model.published import AveragePool
from braingemma.model.resampler import PerceiverResampler
from braingemma.model.speculation import PhraseTable
from braingemma.volume.loaded import checked

COMPONENTS = ("vision", "resampler", "projector", "language", "lora", "grounding", "findings")
ACCELERATORS = ("cuda",)
"""Devices whose matrix units want bfloat16, and to which a copy from page-locked memory need not be waited for."""
Encoding = Literal["exact", "bfloat16", "eight bits"]
P = ParamSpec("P")
R = TypeVar("R")


def _inference(
    method: Callable[Concatenate[BrainGemma3D, P], R],
) -> Callable[Concatenate[BrainGemma3D, P], R]:
    """Without gradients, in mixed precision where the model's device wants it, else in the precision of its weights."""

    @functools.wraps(method)
    def run(self: BrainGemma3D, /, *args: P.args, **kwargs: P.kwargs) -> R:
        exact = self.projector.scale.dtype == torch.float32
        with torch.inference_mode(), self.mixed_precision(), exact_convolutions(wanted=exact):
            return method(self, *args, **kwargs)

    return run


@contextlib.contextmanager
def exact_convolutions(*, wanted: bool = True) -> Iterator[None]:
    """Within, cuDNN works on float32 in float32: left alone it rounds to ten bits (TF32), as cuBLAS does not."""
    cudnn: Any = torch.backends.cudnn
    parts = (cudnn.conv, cudnn.rnn) if wanted else ()  # torch wants both to agree
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


@dataclass
class BrainGemmaOutput(ModelOutput):
    """What `forward` gives; fields that were not asked for, or have no head, are None.

    Attributes:
        loss: Next-token loss over the labels that are not -100.
        logits: (B, T, V) of the language model.
        visual_tokens: (B, N, E).
        resampler_tokens: (B, N, R).
        grounding_logits: (B, d, h, w).
        findings_logits: (B, findings, outputs), uncalibrated.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    visual_tokens: Tensor | None = None
    resampler_tokens: Tensor | None = None
    grounding_logits: Tensor | None = None
    findings_logits: Tensor | None = None


@dataclass(frozen=True)
class GeneratedReport:
    """One report with its tokens.

    Attributes:
        text: The report.
        token_ids: Its tokens, without the end token.
        token_logprobs: Natural log of each token's probability given the volume and the tokens before it.
        ended: Whether the model ended it, or a stop string did; else it was cut after `max_new_tokens`.
    """

    text: str
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    ended: bool


class BrainGemma3D(PreTrainedModel):
    """A report, findings and a lesion map from one brain FLAIR volume."""

    config_class = BrainGemmaConfig
    base_model_prefix = "braingemma"
    main_input_name = "volumes"
    supports_gradient_checkpointing = True
    _no_split_modules = ("SiglipEncoderLayer", "Gemma3DecoderLayer")

    def __init__(self, config: BrainGemmaConfig, tokenizer: Any = None, language_model: Any = None) -> None:
        """Build with random weights.

        Args:
            config: All sizes.
            tokenizer: Of the language model; needed for everything that reads or writes text.
            language_model: A `Gemma3ForCausalLM` to use; None: a random one of `config.text_config`.
        """
        super().__init__(config)
        self.tokenizer = tokenizer
        self.quantization = "none"
        self.head_bits = 16
        self.phrases = PhraseTable()
        self.weights_info: WeightsInfo | None = None
        self.vision = make_encoder(config)
        self.resampler = AveragePool(config) if config.published else PerceiverResampler(config)
        self.projector = Projector(self._token_width(), config.text_config.hidden_size)
        self.language_model = Gemma3ForCausalLM(config.text_config) if language_model is None else language_model
        self.grounding_head = GroundingHead(config) if config.grounding_head else None
        self.findings_head = FindingsHead(config, self._token_width()) if config.findings_head else None
        if config.lora:
            self.add_lora()
        if not self.vision.patch_embedding.weight.is_meta:  # weights will be loaded
            self.vision.inflate()

    def _token_width(self) -> int:
        """Width R of the resampler's tokens."""
        return int(self.config.vision_config.hidden_size if self.config.published else self.config.resampler_width)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every box has set its own weights when it was made."""

    # ------------------------------------------------------------------ parts

    def add_lora(self) -> None:
        """Attach fresh adapters to the language model, float32; they change nothing until they are trained."""
        self.language_model.add_adapter(language.lora_config(self.config))
        for parameter in self.component_parameters("lora"):
            parameter.data = parameter.data.float()
        self.config.lora = True

    def component_parameters(self, component: str) -> Iterator[nn.Parameter]:
        """The trainable parameters of one of `COMPONENTS`; none where the weights lack that part.

        "vision" leaves out SigLIP's 2D kernel, which `forward` never uses; "language" leaves out the adapters.
        """
        if component not in COMPONENTS:
            raise ValueError(f"component must be one of {', '.join(COMPONENTS)}; got {component!r}")
        module = {
            "vision": self.vision,
            "resampler": self.resampler,
            "projector": self.projector,
            "grounding": self.grounding_head,
            "findings": self.findings_head,
        }.get(component, self.language_model)
        for name, parameter in module.named_parameters() if module is not None else ():
            if component == "vision" and name.startswith("siglip.embeddings.patch_embedding."):
                continue
            if module is self.language_model and ("lora_" in name) != (component == "lora"):
                continue
            yield parameter

    @property
    def vision_projector(self) -> nn.Sequential:
        """The projector's layers, by the public code's name."""
        return self.projector.mlp

    @property
    def vis_scale(self) -> nn.Parameter:
        """The projector's scale, by the public code's name."""
        return self.projector.scale

    @property
    def compute_device(self) -> torch.device:
        """Where the visual part lives."""
        return self.projector.scale.device

    def mixed_precision(self) -> torch.autocast:
        """Autocast to bfloat16 on a GPU; off on a CPU, and for float32 weights, which are asked for to be exact."""
        device = self.compute_device.type
        wanted = device in ACCELERATORS and self.projector.scale.dtype == torch.bfloat16
        return torch.autocast(device, torch.bfloat16, enabled=wanted)

    # ------------------------------------------------------------------ from volume to tokens

    def patch_features(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B, d, h, w, C): the encoder's view of each patch.

        Raises:
            VolumeError: the volume was read otherwise than these weights need it, or has another shape.
        """
        volume = checked(volume, self.config.volume_settings, any_grid=self.config.published)
        if self.compute_device.type == "cuda" and volume.device.type == "cpu":
            volume = volume.pin_memory().to(self.compute_device, non_blocking=True)
        return self.vision(volume)

    def resample(self, features: Tensor) -> Tensor:
        """(B, d, h, w, C) to the resampler's tokens (B, N, R)."""
        return self.resampler(features)

    def encode_volume(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) to visual tokens (B, N, E), ready for the language model."""
        return self.projector(self.resample(self.patch_features(volume)))

    def grounding_logits(self, features: Tensor) -> Tensor | None:
        """(B, d, h, w, C) to logits (B, d, h, w) of each patch's lesion share; None without the head."""
        return None if self.grounding_head is None else self.grounding_head(features)

    def findings_logits(self, tokens: Tensor) -> Tensor | None:
        """(B, N, R) to uncalibrated logits (B, findings, outputs); None without the head."""
        return None if self.findings_head is None else self.findings_head(tokens)

    @_inference
    def ground(self, volume: Tensor) -> Tensor | None:
        """(B, 1, D, H, W) to the lesion share of each patch, (B, d, h, w) in [0, 1]; None without the head.

        The map's boxes divide the grid evenly, also where patches overhang it by a padding.
        """
        if self.grounding_head is None:
            return None
        shares = torch.sigmoid(self.grounding_head(self.patch_features(volume)).float())
        return self.vision.on_grid(shares)

    @_inference
    def finding_probabilities(self, volume: Tensor) -> dict[str, Any] | list[dict[str, Any]] | None:
        """Calibrated probabilities of each finding; None without the head.

        Returns:
            For one volume `{finding: {"presence": p, "left": p, "right": p, "sites": {site: p}}}`; for a batch a
            list of those.
        """
        if self.findings_head is None:
            return None
        logits = self.findings_head(self.resample(self.patch_features(volume)))
        rows = [_named_probabilities(row) for row in self.findings_head.probabilities(logits).tolist()]
        return rows[0] if len(rows) == 1 else rows

    # ------------------------------------------------------------------ training

    def forward(
        self,
        volumes: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> BrainGemmaOutput:
        """One pass with gradients through every part that is not frozen.

        Args:
            volumes: (B, 1, D, H, W).
            input_ids: (B, T) with placeholders, as `training_batch` makes them; None: no language model.
            attention_mask: (B, T), 1 for tokens and 0 for padding.
            labels: (B, T), -100 where there is no loss.
        """
        features = self.patch_features(volumes)
        tokens = self.resample(features)
        visual = self.projector(tokens)
        output = BrainGemmaOutput(
            visual_tokens=visual,
            resampler_tokens=tokens,
            grounding_logits=self.grounding_logits(features),
            findings_logits=self.findings_logits(tokens),
        )
        if input_ids is None:
            return output
        embeddings = language.embed_with_image(self.language_model, input_ids, visual)
        text = self.language_model(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels)
        output.loss, output.logits = text.loss, text.logits
        return output

    def training_batch(self, reports: Sequence[str], prompt: str | None = None) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` (B, T), right-padded: loss on the report and its end only."""
        prefix = self._prompt_ids(prompt)
        end = language.training_end_id(self.tokenizer, self.config.text_config)
        bodies = [[*self.report_ids(report), end] for report in reports]
        longest = max(len(body) for body in bodies)
        pad = self.tokenizer.pad_token_id or 0
        rows = [prefix + body + [pad] * (longest - len(body)) for body in bodies]
        masks = [[1] * (len(prefix) + len(body)) + [0] * (longest - len(body)) for body in bodies]
        labels = [[language.IGNORE] * len(prefix) + body + [language.IGNORE] * (longest - len(body)) for body in bodies]
        return {
            "input_ids": torch.tensor(rows),
            "attention_mask": torch.tensor(masks),
            "labels": torch.tensor(labels),
        }

    def report_ids(self, report: str) -> list[int]:
        """Token ids of a report as it follows the prompt, without an end token."""
        return list(self._text_tokenizer()(report, add_special_tokens=False)["input_ids"])

    # ------------------------------------------------------------------ reports

    def generation_settings(self, **changes: Any) -> GenerationSettings:
        """How these weights write, with some fields of `GenerationSettings` in their place."""
        return GenerationSettings(**{**(self.config.decoding or {}), **changes})

    @_inference
    def generate_batch(
        self,
        volume: Tensor,
        prompt: str | None = None,
        settings: GenerationSettings | None = None,
        progress: Progress | None = None,
        copies: int = 1,
    ) -> list[GeneratedReport]:
        """`copies` reports for each volume of (B, 1, D, H, W), next to each other; settings None: those of the weights.

        More than one copy need a temperature: greedy ones would be equal.
        """
        settings = settings or self.generation_settings()
        tokenizer = self._text_tokenizer()
        visual = self.encode_volume(volume)
        ids = torch.tensor([self._prompt_ids(prompt)] * visual.shape[0], device=visual.device)
        decoded = language.decode(
            self.language_model,
            language.embed_with_image(self.language_model, ids, visual),
            settings,
            language.end_ids(tokenizer, self.config.text_config),
            stop=lambda written: any(s in tokenizer.decode(written, skip_special_tokens=True) for s in settings.stop),
            progress=progress,
            copies=copies,
            phrases=self.phrases,
        )
        if settings.speculate:
            self.phrases.learn_all(decoded.token_ids)
        return [
            GeneratedReport(self._report_text(ids, settings.stop, prompt), ids, logprobs, ended)
            for ids, logprobs, ended in zip(decoded.token_ids, decoded.token_logprobs, decoded.ended, strict=True)
        ]

    def generate(
        self,
        volume: Tensor,
        prompt: str | None = None,
        *,
        progress: Progress | None = None,
        **settings: Any,
    ) -> GeneratedReport:
        """Write the report of one volume, with its tokens; `generate_batch` writes many.

        Args:
            volume: (1, 1, D, H, W) from `load_nifti_volume` or `prepare_volume`.
            prompt: None: the prompt of these weights.
            progress: Called with the number of tokens written so far.
            **settings: Fields of `GenerationSettings` in place of the weights' own.
        """
        if volume.shape[0] != 1:
            raise GenerationError(f"generate writes one report, got {volume.shape[0]} volumes; use generate_batch")
        return self.generate_batch(volume, prompt, self.generation_settings(**settings), progress)[0]

    def generate_report(
        self,
        volume: Tensor,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | Literal["weights"] | None = "weights",
        top_p: float | None = None,
        **settings: Any,
    ) -> str | list[str]:
        """Write a report: text for one volume, a list of texts for a batch.

        Args:
            volume: (B, 1, D, H, W) from `load_nifti_volume`, or a plain tensor of a right shape.
            prompt: None: the prompt of these weights.
            max_new_tokens: None: as the weights say, else 256.
            temperature: 0 or None: greedy; "weights": as the weights say, else greedy.
            top_p: None: as the weights say, else 0.9.
            **settings: Further fields of `GenerationSettings`, and `progress`, see `generate`.
        """
        progress = settings.pop("progress", None)
        stated = {"max_new_tokens": max_new_tokens, "top_p": top_p}
        settings |= {name: value for name, value in stated.items() if value is not None}
        if temperature != "weights":
            settings["temperature"] = temperature
        chosen = self.generation_settings(**settings)
        reports = self.generate_batch(volume, prompt, chosen, progress)
        return reports[0].text if len(reports) == 1 else [r.text for r in reports]

    @_inference
    def score_tokens(self, volumes: Tensor, token_ids: Sequence[int] | Tensor, prompt: str | None = None) -> Tensor:
        """Log-probability of each token of one report given each volume, by one teacher-forced pass.

        Args:
            volumes: (B, 1, D, H, W).
            token_ids: (T,) tokens of the report, as `GeneratedReport.token_ids` or `report_ids`.
            prompt: None: the prompt of these weights.

        Returns:
            (B, T) float32.
        """
        return self.score_reports(volumes, [[int(t) for t in token_ids]], prompt)[0]

    @_inference
    def score_reports(
        self,
        volumes: Tensor,
        reports: Sequence[Sequence[int]],
        prompt: str | None = None,
        *,
        wanted: Sequence[Sequence[int]] | None = None,
        encoding: Encoding = "exact",
    ) -> tuple[Tensor, ...]:
        """As `score_tokens` for several reports of the same volumes.

        Volumes are encoded once, and what further reports have in common with the first is read once.

        Args:
            volumes: (B, 1, D, H, W).
            reports: Tokens of each report.
            prompt: None: the prompt of these weights.
            wanted: For each report the places of the tokens whose log-probability is asked for; None: all.
            encoding: How large volumes are encoded on a CPU, see `large_volumes`: "exact": as for a report;
                "bfloat16": by the library in the same arithmetic; "eight bits".

        Returns:
            For each report (B, T), or (B, places), float32.
        """
        if not reports or not all(len(ids) for ids in reports):
            raise GenerationError("expected at least one token to score, got none")
        asked = [list(range(len(ids))) for ids in reports] if wanted is None else [list(places) for places in wanted]
        eight = encoding == "eight bits"
        with contextlib.nullcontext() if encoding == "exact" else large_volumes(self.vision, eight_bits=eight):
            visual = self.encode_volume(volumes)
        return language.score_after(
            self.language_model, visual, self._prompt_ids(prompt), [list(ids) for ids in reports], asked
        )

    def _prompt_ids(self, prompt: str | None) -> list[int]:
        text = self.config.prompt if prompt is None else prompt
        return language.prompt_ids(self._text_tokenizer(), text, self.config)

    def _report_text(self, ids: Sequence[int], stop: Sequence[str], prompt: str | None) -> str:
        text = self._text_tokenizer().decode(list(ids), skip_special_tokens=True)
        asked = self.config.prompt if prompt is None else prompt
        if self.config.published and asked:  # the public code cuts after the prompt where the model repeats it
            text = text.split(asked)[-1]
        cuts = [text.index(s) for s in stop if s in text]
        return text[: min(cuts, default=len(text))].strip()

    def _text_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise GenerationError("this model has no tokenizer: load it with from_pretrained, or set model.tokenizer")
        return self.tokenizer

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(
        cls,
        ref: str | Path,
        *,
        device: str = "auto",
        quantization: str = "auto",
        dtype: Any = None,
        head_bits: int = 16,
    ) -> BrainGemma3D:
        """Load weights: "demo", a folder, or a hub id; see `braingemma.checkpoint.load.load`."""
        how: dict[str, Any] = {"device": device, "quantization": quantization, "dtype": dtype, "head_bits": head_bits}
        loaded: BrainGemma3D = checkpoint.load(cls, ref, **how)
        return loaded

    @classmethod
    def verify_pretrained(cls, folder: str | Path) -> WeightsInfo:
        """Check each file, key and shape of a folder without building the model; see `checkpoint.load.verify`."""
        return checkpoint.verify(cls, folder)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write config, vision delta, resampler, projector, heads, adapters and language model to `folder`."""
        save(self, Path(folder))


def _named_probabilities(row: list[list[float]]) -> dict[str, Any]:
    """(findings, outputs) probabilities of one volume, with their names."""
    sites_from = FINDING_OUTPUTS.index("right") + 1
    return {
        finding: {
            **dict(zip(FINDING_OUTPUTS[:sites_from], values[:sites_from], strict=True)),
            "sites": dict(zip(FINDING_OUTPUTS[sites_from:], values[sites_from:], strict=True)),
        }
        for finding, values in zip(FINDINGS, row, strict=True)
    }
