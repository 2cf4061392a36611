"""What guesses from a table of phrases spare at full size: the demo's reports, written again by a model of any weights.

Random weights write no report, and what they repeat is no measure. So the demo weights write reports of phantoms, with
guesses, in one process, so that the table fills as a daemon's does; of each pass it is noted how many rows it read, and
the two likeliest tokens after each. The other model then writes the same reports by the same loop
(`braingemma.model.language.decode`) from a table of the same reports: it reads all its weights at each pass, and what
its output head says is then replaced by what the demo's said at that pass. So each pass has the demo's number of rows
and yields the demo's number of tokens, after as many tokens as there.

Tokens are those of the demo's tokenizer, taken as they are: its pieces are whole words of the reports (five characters
each), which a larger vocabulary would cut alike or into more pieces, of which the further ones are easily guessed.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from braingemma.errors import BrainGemmaError
from braingemma.model import language
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.speculation import PhraseTable
from braingemma.volume.preprocess import prepare_image
from training.phantoms.phantom import make_phantom

SEED = 7_800_000
"""Of the first phantom whose report is written."""
GUESSED = 7
"""Tokens guessed at each pass at most."""


@dataclass(frozen=True)
class Pass:
    """One pass of a language model: how many rows it read, and what its head said after those that were asked for.

    Attributes:
        rows: Tokens that it read.
        tokens: (K, 2) the two likeliest tokens.
        logits: (K, 2) theirs.
    """

    rows: int
    tokens: Tensor
    logits: Tensor


@dataclass
class Written:
    """A report as it was written: its tokens, those that end a report, and each pass, that over the prefix first."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    passes: list[Pass] = field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        """Of each pass after that over the prefix."""
        return [one.rows for one in self.passes[1:]]


def demo_reports(count: int, guessed: int = GUESSED) -> list[Written]:
    """Reports of so many phantoms, by one model whose table fills from the first to the last.

    In bfloat16, as a large model's language part is.
    """
    model = BrainGemma3D.from_pretrained("demo", device="cpu", quantization="4bit", dtype=torch.bfloat16)
    heads = (make_phantom(SEED + number, stripped=True).volume for number in range(count))
    return write(model, (prepare_image(head, model.config).tensor for head in heads), guessed)


def write(model: BrainGemma3D, volumes: Iterable[Tensor], guessed: int) -> list[Written]:
    """The report of each volume (1, 1, D, H, W), greedily and with guesses, and its passes."""
    ends = tuple(language.end_ids(model.tokenizer, model.config.text_config))
    found = []
    for volume in volumes:
        with _noted(model.language_model) as passes:
            report = model.generate(volume, temperature=0, speculate=guessed)
        found.append(Written(tuple(report.token_ids), ends, passes))
    return found


@contextlib.contextmanager
def _noted(language_model: Any) -> Iterator[list[Pass]]:
    """The passes of a language model, as they come."""
    passes: list[Pass] = []
    rows: list[int] = []

    def after_head(_head: Any, _given: Any, logits: Tensor) -> None:
        best = logits[0].topk(2)
        passes.append(Pass(rows[-1], best.indices, best.values))

    hooks = (
        language_model.model.layers[0].register_forward_pre_hook(lambda _layer, given: rows.append(given[0].shape[1])),
        language_model.lm_head.register_forward_hook(after_head),
    )
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _prompted(language_model: Any, report: Written) -> Iterator[None]:
    """Whatever a model computes, its head says what was said at the same pass of a report that was written."""
    said = iter(report.passes)

    def after_head(_head: Any, _given: Any, logits: Tensor) -> Tensor:
        now = next(said, None)
        if now is None or len(now.tokens) != logits.shape[1]:
            raise BrainGemmaError("the report's passes are not those of the demo")
        logits.fill_(torch.finfo(logits.dtype).min)
        logits[0].scatter_(1, now.tokens, now.logits.to(logits.dtype))
        return logits

    hook = language_model.lm_head.register_forward_hook(after_head)
    try:
        yield
    finally:
        hook.remove()


def rewrite(language_model: Any, prefix: Tensor, reports: Sequence[Written], guessed: int = GUESSED) -> list[float]:
    """Write reports again after another model's prefix (1, T, E), cut to the demo's length, from an empty table on.

    Returns:
        Seconds of each, from its first token, which comes with the prefix, to its end.

    Raises:
        BrainGemmaError: the passes, or the tokens, are not those that were noted.
    """
    table, found = PhraseTable(), []
    for report in reports:
        start = prefix[:, : report.passes[0].rows]
        with _prompted(language_model, report):
            seconds, ids = _timed(language_model, start, report.ends, guessed, table)
        if ids != report.ids:
            raise BrainGemmaError("the report's tokens are not those of the demo")
        found.append(seconds)
        table.learn(ids)
    return found


def _timed(
    model: Any, prefix: Tensor, ends: Sequence[int], guessed: int, table: PhraseTable
) -> tuple[float, tuple[int, ...]]:
    """(seconds from the first token on, tokens)."""
    stamps: list[float] = []
    written = language.decode(
        model,
        prefix,
        language.GenerationSettings(speculate=guessed),
        ends,
        progress=lambda _: stamps.append(time.perf_counter()),
        phrases=table,
    )
    return time.perf_counter() - stamps[0], written.token_ids[0]


def summary(reports: Sequence[Written], turns: Sequence[Sequence[float]], floor: float) -> dict[str, Any]:
    """Seconds per token, with each report's median over the turns, and by how much they pass the floor.

    The first token comes with the prefix and is not counted; what ends a report is a token, too.
    """
    passes = sum(len(report.rows) for report in reports)
    tokens = sum(tokens_after_first(report) for report in reports)
    seconds = sum(statistics.median(times) for times in zip(*turns, strict=True)) / tokens
    return {
        "reports": len(reports),
        "passes": passes,
        "tokens": tokens,
        "tokens_per_pass": round(tokens / passes, 2),
        "seconds_per_token": round(seconds, 4),
        "over_floor": round(seconds / floor, 2),
    }


def tokens_after_first(report: Written) -> int:
    """Tokens that passes after the prefix yielded, the end included where it was reached."""
    whole = len(report.ids) < language.GenerationSettings().max_new_tokens
    return len(report.ids) - 1 + whole
