"""What is explained: the log-probability of the words of a report that carry its findings.

One teacher-forced pass gives the log-probability of every token, so all targets of one report cost one pass;
only the contrast of the sides needs a second one, of the report with left and right exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from braingemma.errors import ExplainError
from braingemma.findings.text import Span, finding_spans, findings_from_text
from braingemma.findings.vocabulary import mirror_text
from braingemma.model.language import common_start

Float = npt.NDArray[np.float64]

ALL_FINDINGS = "findings"
"""All words that carry a present finding."""
WHOLE_REPORT = "report"
"""All words."""
SIDE = "side"
"""Why this side: words of the stated side against those of the other, in the report with the sides exchanged."""


@dataclass(frozen=True)
class Target:
    """One score of a report.

    Attributes:
        name: ALL_FINDINGS, WHOLE_REPORT, SIDE, or the name of a finding.
        tokens: Positions in the report's tokens whose mean log-probability is the score.
        against: Positions in the mirrored report's tokens that are subtracted; empty for all but SIDE.
        words: The words explained, for a reader.
    """

    name: str
    tokens: tuple[int, ...]
    against: tuple[int, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetPlan:
    """Targets of one report; the first is the one that is drawn.

    Attributes:
        targets: None of them is empty of tokens.
        token_ids: Tokens of the report.
        mirrored_ids: Tokens of the report with the sides exchanged; empty where no target needs them.
    """

    targets: tuple[Target, ...]
    token_ids: tuple[int, ...]
    mirrored_ids: tuple[int, ...] = ()

    @property
    def asked(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Places in the report, and in the mirrored one, of the tokens that any target counts."""
        return _places(t.tokens for t in self.targets), _places(t.against for t in self.targets)

    @property
    def reports(self) -> list[tuple[int, ...]]:
        """Tokens of each report that counts: up to the last one asked for, which nothing after it can change."""
        both = zip((self.token_ids, self.mirrored_ids), self.asked, strict=True)
        return [ids[: places[-1] + 1] for ids, places in both if places]

    @property
    def tokens_read(self) -> int:
        """Tokens of the reports that the language model reads: what both begin with, once."""
        reports = self.reports
        again = sum(common_start(before, report) for before, report in itertools.pairwise(reports))
        return sum(map(len, reports)) - again


def plan_targets(report: str, tokenizer: Any, target: str = ALL_FINDINGS, *, contrast: bool = False) -> TargetPlan:
    """Choose the tokens to explain.

    Args:
        report: The model's report, without added lines.
        tokenizer: A fast tokenizer of transformers (it gives the characters of each token).
        target: Which target comes first and is drawn.
        contrast: Add SIDE where the report states one side; doubles the language model's part of the cost.

    Returns:
        The plan; without targets where the report states no present finding and `target` is not WHOLE_REPORT.

    Raises:
        ExplainError: The report is empty, or does not state the target that was asked for.
    """
    if not report.strip():
        raise ExplainError("expected a report to explain, got an empty text")
    ids, offsets = _tokens(report, tokenizer)
    spans = present_spans(report)
    found = _finding_targets(report, spans, offsets)
    mirrored: tuple[int, ...] = ()
    if spans and (contrast or target == SIDE):
        side, mirrored = _side_target(report, spans, offsets, tokenizer)
        found += side
    if target == WHOLE_REPORT:
        found.insert(0, Target(WHOLE_REPORT, tuple(range(len(ids))), words=(report.strip(),)))
    if not found:
        return TargetPlan((), ids)
    first = [t for t in found if t.name == target]
    if not first:
        raise ExplainError(f"expected a target of {', '.join(t.name for t in found)} in this report, got {target!r}")
    return TargetPlan((*first, *(t for t in found if t.name != target)), ids, mirrored)


def present_spans(report: str) -> list[Span]:
    """Spans of findings that the report states as present: the absence of one is in no place of the picture."""
    present = {f.finding for f in findings_from_text(report) if f.presence == "present"}
    return [s for s in finding_spans(report) if s.finding in present]


@dataclass(frozen=True)
class ModelScorer:
    """Scores of a plan's targets by the model: mean log-probability, nats per token.

    Attributes:
        model: A `BrainGemma3D`.
        plan: What is scored; one column for each target.
        prompt: None: the prompt of the weights.
        encoding: See `BrainGemma3D.score_reports`.
    """

    model: Any
    plan: TargetPlan
    prompt: str | None = None
    encoding: str = "exact"

    def score(self, volumes: Tensor) -> Float:
        """(B, 1, D, H, W) to (B, targets); the volumes are encoded once for all targets."""
        targets, asked = self.plan.targets, self.plan.asked
        scored = self.model.score_reports(
            volumes.to(self.model.compute_device),
            self.plan.reports,
            prompt=self.prompt,
            wanted=[places for places in asked if places],
            encoding=self.encoding,
        )
        own, other = scored[0], scored[-1]
        columns = [own[:, _within(asked[0], t.tokens)].mean(dim=1) for t in targets]
        for column, target in enumerate(targets):
            if target.against:
                columns[column] = columns[column] - other[:, _within(asked[1], target.against)].mean(dim=1)
        return np.asarray(torch.stack(columns, dim=1).double().cpu().numpy(), dtype=np.float64)


def _places(groups: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """All places of the groups in their order, each once."""
    return tuple(sorted({place for group in groups for place in group}))


def _within(places: Sequence[int], some: Sequence[int]) -> list[int]:
    """Where some places stand among all."""
    return [places.index(place) for place in some]


def _finding_targets(report: str, spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[Target]:
    """ALL_FINDINGS, then each finding apart."""
    if not spans:
        return []
    names = list(dict.fromkeys(s.finding for s in spans))
    groups = {ALL_FINDINGS: list(spans)} | {n: [s for s in spans if s.finding == n] for n in names}
    return [
        Target(name, positions, words=_words(report, group))
        for name, group in groups.items()
        if (positions := _positions(group, offsets))
    ]


def _side_target(
    report: str, spans: Sequence[Span], offsets: Sequence[tuple[int, int]], tokenizer: Any
) -> tuple[list[Target], tuple[int, ...]]:
    """SIDE and the mirrored report's tokens; nothing where no side, or both, are stated."""
    sides = [s for s in spans if s.kind == "side"]
    if len({s.value for s in sides} & {"left", "right"}) != 1:
        return [], ()
    mirrored = mirror_text(report)
    ids, other_offsets = _tokens(mirrored, tokenizer)
    other = [s for s in present_spans(mirrored) if s.kind == "side"]
    own, against = _positions(sides, offsets), _positions(other, other_offsets)
    if not own or not against:
        return [], ()
    return [Target(SIDE, own, against, _words(report, sides))], ids


def _tokens(text: str, tokenizer: Any) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Token ids and the characters [start, end) of each."""
    if not getattr(tokenizer, "is_fast", False):
        raise ExplainError(f"expected a fast tokenizer, which tells the characters of a token, got {type(tokenizer)}")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tuple(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]


def _positions(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Tokens that share a character with a span."""
    return tuple(
        position for position, (a, b) in enumerate(offsets) if any(max(a, s.start) < min(b, s.end) for s in spans)
    )


def _words(report: str, spans: Sequence[Span]) -> tuple[str, ...]:
    """The words of spans in the order of the text, each place once."""
    return tuple(report[a:b] for a, b in dict.fromkeys((s.start, s.end) for s in spans))
