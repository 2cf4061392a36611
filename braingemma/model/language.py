"""The language model: a Gemma 3 text stack that reads visual tokens among its text tokens.

Shapes: B batch, N visual tokens, T tokens, E hidden size. A *placeholder* id stands where a visual token goes.
Source: Gemma 3, arXiv 2503.19786; LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from braingemma.configuration import BrainGemmaConfig
from braingemma.errors import GenerationError
from braingemma.model.speculation import MOST_GUESSES, PhraseTable, RowsApart, rows_stay_apart

IMAGE_PLACEHOLDER = -1
"""Stands in a token sequence where a visual token goes; no tokenizer gives it out, and no embedding is read for it."""
IGNORE = -100
"""Labels with this value carry no loss (torch's default `ignore_index`)."""

IMAGE_MARKS = ("<start_of_image>", "<image>")
IMAGE_END_MARK = "<end_of_image>"
END_OF_TURN = "<end_of_turn>"
PUBLISHED_PROMPT_TOKENS = 256
"""Tokens after which the public code cuts its prompt."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class GenerationSettings:
    """How a report is written.

    Attributes:
        max_new_tokens: Tokens at most.
        min_new_tokens: No end token before so many.
        temperature: 0 or None is greedy and reproducible; above, tokens are drawn.
        top_k: Only the k likeliest tokens are drawn; 0: all. No part in greedy writing, as `top_p`.
        top_p: Nucleus of the drawing (arXiv 1904.09751).
        repetition_penalty: Above 1 makes tokens that were written less likely (arXiv 1909.05858); 1 is none.
        no_repeat_ngram_size: No n-gram of this length is written twice; 0 allows all.
        stop: Writing ends before the first of these strings.
        seed: Of the drawing; None: torch's own generator.
        speculate: Tokens that a table of phrases guesses at each pass where one report is written greedily on a CPU;
            the text is the same, see `speculation`. 0: none.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float | None = 0.0
    top_k: int = 0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    speculate: int = 0

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if self.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature is not None and self.temperature < 0:
            raise GenerationError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.repetition_penalty <= 0:
            raise GenerationError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        for name in ("min_new_tokens", "top_k", "no_repeat_ngram_size", "speculate"):
            if getattr(self, name) < 0:
                raise GenerationError(f"{name} must be 0 (none) or above, got {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time, so that nothing is drawn."""
        return not self.temperature

    def facts(self) -> dict[str, Any]:
        """How tokens are chosen, for a report's provenance."""
        drawn = ("temperature", "top_k", "top_p", "seed")
        left_out = ("stop", "speculate", *(drawn if self.greedy else ()))
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        return {"decoding": "greedy" if self.greedy else "sampling", **values}

    def processors(self, ends: Sequence[int], device: torch.device | str = "cpu") -> LogitsProcessorList:
        """The changes to the logits (B, V) before a token is chosen, in the order of transformers' `generate`."""
        chosen: list[Any] = []
        if self.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            chosen.append(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        if self.min_new_tokens and ends:
            end_tokens = torch.tensor(list(ends), device=device)
            chosen.append(MinNewTokensLengthLogitsProcessor(0, self.min_new_tokens, end_tokens, device=str(device)))
        if self.temperature:
            chosen.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                chosen.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                chosen.append(TopPLogitsWarper(self.top_p))
        return LogitsProcessorList(chosen)


def lora_config(config: BrainGemmaConfig) -> LoraConfig:
    """Adapters on the attention of the text stack, and of nothing else."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def prompt_ids(tokenizer: Any, prompt: str, config: BrainGemmaConfig) -> list[int]:
    """Token ids before the report, with `num_visual_tokens` placeholders where the picture goes.

    The published code puts the picture before the prompt as its tokenizer gives it, `<bos>` included. Otherwise BOS
    comes first; where the tokenizer's chat template places a picture, the visual tokens stand there, else after BOS.
    """
    image = [IMAGE_PLACEHOLDER] * config.num_visual_tokens
    if config.published:
        return image + list(tokenizer(prompt, truncation=True, max_length=PUBLISHED_PROMPT_TOKENS)["input_ids"])
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    templated = _templated_ids(tokenizer, prompt, image)
    return templated if templated is not None else bos + image + _plain_ids(tokenizer, prompt)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _templated_ids(tokenizer: Any, prompt: str, image: list[int]) -> list[int] | None:
    """Ids through the chat template; None where there is no template or it has no place for a picture."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    mark = next((m for m in IMAGE_MARKS if m in text), None)
    if mark is None:
        return None
    before, after = text.split(mark, 1)
    vocabulary = tokenizer.get_vocab()
    # Gemma 3's processor frames a picture with a start and an end mark and two empty lines around (processing_gemma3).
    opening = [vocabulary[mark]] if mark == "<start_of_image>" and mark in vocabulary else []
    closing = [vocabulary[IMAGE_END_MARK]] if opening and IMAGE_END_MARK in vocabulary else []
    space = "\n\n" if opening else ""
    return [
        *_plain_ids(tokenizer, before + space),
        *opening,
        *image,
        *closing,
        *_plain_ids(tokenizer, space + after),
    ]


def end_ids(tokenizer: Any, language_config: Any) -> list[int]:
    """Ids that end a report: the configuration's, the tokenizer's, and Gemma's end of turn where it has one."""
    configured = language_config.eos_token_id
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    ids.append(tokenizer.eos_token_id)
    ids.append(tokenizer.get_vocab().get(END_OF_TURN))
    known = [i for i in dict.fromkeys(ids) if i is not None and 0 <= i < language_config.vocab_size]
    if not known:
        raise GenerationError("neither the language model's config nor the tokenizer names an end-of-text token")
    return known


def training_end_id(tokenizer: Any, language_config: Any) -> int:
    """The id that a training report ends with: the end of turn under a chat template, else the end of text."""
    turn = tokenizer.get_vocab().get(END_OF_TURN)
    if getattr(tokenizer, "chat_template", None) and turn is not None:
        return int(turn)
    return int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else end_ids(tokenizer, language_config)[0])


def embed_with_image(language_model: Any, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
    """Text embeddings with the visual tokens at the placeholders.

    Args:
        language_model: A `Gemma3ForCausalLM`.
        input_ids: (B, T) with exactly N placeholders in each row.
        visual_tokens: (B, N, E).

    Returns:
        (B, T, E) in the type of the language model's embeddings.
    """
    is_image = input_ids == IMAGE_PLACEHOLDER
    counts = is_image.sum(dim=1)
    if not bool((counts == visual_tokens.shape[1]).all()):
        raise GenerationError(
            f"each row needs {visual_tokens.shape[1]} placeholders for visual tokens, got {counts.tolist()}"
        )
    embeddings = language_model.get_input_embeddings()(input_ids.clamp(min=0))
    return embeddings.masked_scatter(is_image.unsqueeze(-1), visual_tokens.to(embeddings))


def score_after(
    language_model: Any,
    visual: Tensor,
    prompt: list[int],
    reports: Sequence[list[int]],
    wanted: Sequence[list[int]],
) -> tuple[Tensor, ...]:
    """Log-probabilities of reports' tokens, each by one teacher-forced pass.

    Each report's keys and values are kept for the next one, as far as both begin alike; of the output head, which is
    the widest layer, only the rows of the places that are wanted are computed.

    Args:
        language_model: A `Gemma3ForCausalLM`.
        visual: (B, N, E).
        prompt: Ids before the report, with N placeholders.
        reports: Ids of each report, at least one of them.
        wanted: For each report the places of its tokens that are asked for.

    Returns:
        (B, places) float32 for each report.
    """
    window = getattr(language_model.config, "sliding_window", None)
    longest = len(prompt) + max(map(len, reports))
    # A layer with a window drops what lies before it, and no cache goes back there.
    shared = len(reports) > 1 and prompt[-1] != IMAGE_PLACEHOLDER and (window is None or longest < window)
    cache = DynamicCache(config=language_model.config) if shared else None
    found, before = [], None
    for report, places in zip(reports, wanted, strict=True):
        ids = torch.tensor([prompt + report[:-1]] * visual.shape[0], device=visual.device)
        # The token at place p follows from what the model says at the position before it.
        known = 0
        if cache is not None and before is not None:
            known = len(prompt) + min(common_start(before, report), *places) - 1
            cache.crop(known - cache.get_seq_length())
        embeddings = embed_with_image(language_model, ids, visual)[:, known:]
        keep = torch.tensor([len(prompt) + place - 1 - known for place in places], device=visual.device)
        step = {"past_key_values": cache, "use_cache": True} if shared else {"use_cache": False}
        logits = language_model(inputs_embeds=embeddings, logits_to_keep=keep, **step).logits.float()  # (B, places, V)
        target = ids.new_tensor([report[place] for place in places]).expand(visual.shape[0], -1).unsqueeze(-1)
        found.append(torch.log_softmax(logits, dim=-1).gather(-1, target).squeeze(-1))
        before = report
    return tuple(found)


def common_start(first: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with alike, the last of the other not among them: it is only predicted."""
    pairs = zip(first[:-1], other[:-1], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class Decoded:
    """What `decode` wrote, for each row.

    Attributes:
        token_ids: Ids without the end token.
        token_logprobs: Their log-probabilities.
        ended: Whether the model ended the row, or a stop did; else it was cut at `max_new_tokens`.
    """

    token_ids: tuple[tuple[int, ...], ...]
    token_logprobs: tuple[tuple[float, ...], ...]
    ended: tuple[bool, ...]


class _Rows:
    """The rows of a batch while they are written: which are done, and what they hold."""

    def __init__(self, batch: int, ends: Sequence[int], stop: Callable[[list[int]], bool]) -> None:
        self.ends = frozenset(ends)
        self.stop = stop
        self.ids: list[list[int]] = [[] for _ in range(batch)]
        self.logprobs: list[list[float]] = [[] for _ in range(batch)]
        self.done = [False] * batch

    def add(self, ids: list[int], logprobs: list[float]) -> bool:
        """Take one token for each row; true when all rows are done."""
        for row, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
            if self.done[row]:
                continue
            if token in self.ends:
                self.done[row] = True
                continue
            self.ids[row].append(token)
            self.logprobs[row].append(logprob)
            self.done[row] = self.stop(self.ids[row])
        return all(self.done)

    def decoded(self) -> Decoded:
        """What they hold by now."""
        return Decoded(tuple(map(tuple, self.ids)), tuple(map(tuple, self.logprobs)), tuple(self.done))


def _choose(scores: Tensor, settings: GenerationSettings, generator: torch.Generator | None) -> Tensor:
    """(B, V) processed logits to (B, 1) token ids."""
    if settings.greedy:
        return scores.argmax(dim=-1, keepdim=True)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)


@torch.inference_mode()
def decode(
    language_model: Any,
    inputs_embeds: Tensor,
    settings: GenerationSettings,
    ends: Sequence[int],
    stop: Callable[[list[int]], bool] = lambda _: False,
    progress: Progress | None = None,
    copies: int = 1,
    phrases: PhraseTable | None = None,
) -> Decoded:
    """Write token by token after the prefix (B, T, E), which is computed once.

    Args:
        language_model: A `Gemma3ForCausalLM`.
        inputs_embeds: (B, T, E), rows of equal length.
        settings: How tokens are chosen.
        ends: Ids that end a row.
        stop: Told a row's ids so far; true ends the row.
        progress: Called with the number of tokens written so far, after each step.
        copies: Texts of each row, next to each other; all share the row's prefix.
        phrases: What `settings.speculate` guesses from.

    Returns:
        Ids, log-probabilities under the unchanged distribution (temperature 1, no penalty), and which rows ended.
    """
    batch, device = inputs_embeds.shape[0] * copies, inputs_embeds.device
    guessing = phrases is not None and settings.speculate and settings.greedy and batch == 1
    if phrases is not None and guessing and rows_stay_apart(language_model):
        return _Speculation(language_model, settings, ends, stop, phrases, progress).write(inputs_embeds)
    generator = None if settings.seed is None else torch.Generator(device).manual_seed(settings.seed)
    processors = settings.processors(ends, device)
    cache = DynamicCache(config=language_model.config)
    rows = _Rows(batch, ends, stop)
    written = torch.empty((batch, 0), dtype=torch.long, device=device)
    step: dict[str, Tensor] = {"inputs_embeds": inputs_embeds}
    for count in range(1, settings.max_new_tokens + 1):
        out = language_model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()  # (B, V)
        if count == 1 and copies > 1:
            cache.batch_repeat_interleave(copies)
            logits = logits.repeat_interleave(copies, dim=0)
        token = _choose(processors(written, logits.clone()), settings, generator)  # (B, 1)
        logprob = logits.gather(1, token) - logits.logsumexp(dim=-1, keepdim=True)
        written = torch.cat((written, token), dim=1)
        finished = rows.add(token[:, 0].tolist(), logprob[:, 0].tolist())
        if progress is not None:
            progress(count)
        if finished:
            break
        step = {"input_ids": token}
    return rows.decoded()


class _Speculation:
    """One report, greedily, with guesses from a table of phrases."""

    def __init__(
        self,
        model: Any,
        settings: GenerationSettings,
        ends: Sequence[int],
        stop: Callable[[list[int]], bool],
        phrases: PhraseTable,
        progress: Progress | None,
    ) -> None:
        self.model, self.settings, self.phrases, self.progress = model, settings, phrases, progress
        self.rows = _Rows(1, ends, stop)
        self.ends = ends
        self.cache = DynamicCache(config=model.config)
        self.written: list[int] = []

    def write(self, inputs_embeds: Tensor) -> Decoded:
        """See `decode`."""
        self.processors = self.settings.processors(self.ends, inputs_embeds.device)
        finished = self._take(self._logits({"inputs_embeds": inputs_embeds}, 1), [])
        while not finished and len(self.written) < self.settings.max_new_tokens:
            guesses = self._guess()
            ids = torch.tensor([[self.written[-1], *guesses]], device=inputs_embeds.device)
            before = len(self.written)
            finished = self._take(self._logits({"input_ids": ids}, len(guesses) + 1), guesses)
            unused = len(guesses) + 1 - (len(self.written) - before)
            if unused and not finished:
                self.cache.crop(-unused)
        return self.rows.decoded()

    def _guess(self) -> list[int]:
        """Guesses within the report's length, and within the attention's window, back behind which no cache goes."""
        window = getattr(self.model.config, "sliding_window", None) or self.settings.max_new_tokens + 10**6
        room = self.settings.max_new_tokens - len(self.written) - 1
        room = min(room, window - self.cache.get_seq_length() - 2)
        count = min(self.settings.speculate, MOST_GUESSES, room)
        return self.phrases.propose(self.written, count) if count > 0 else []

    def _logits(self, step: dict[str, Tensor], count: int) -> Tensor:
        """(1, count, V)."""
        with RowsApart() if count > 1 else contextlib.nullcontext():
            return self.model(**step, past_key_values=self.cache, use_cache=True, logits_to_keep=count).logits

    def _take(self, logits: Tensor, guesses: list[int]) -> bool:
        """Add the tokens that greedy writing takes, as far as the guesses were right; true at the report's end."""
        for place in range(len(guesses) + 1):
            here = logits[:, place].float()
            written = torch.tensor([self.written], dtype=torch.long, device=logits.device)
            scores = self.processors(written, here.clone())
            token = int(scores.argmax(dim=-1))
            self.written.append(token)
            finished = self.rows.add([token], [float(here[0, token] - here.logsumexp(dim=-1))])
            if self.progress is not None:
                self.progress(len(self.written))
            if finished:
                return True
            if place == len(guesses) or token != guesses[place]:
                return False
        return False
