"""Among several texts of the model, the one that agrees with what the model sees.

The text is written by a small part of the model; classifier and map read the picture more directly. Where the greedy
text contradicts them, further texts are drawn, and the most probable of those that agree is taken. A text that leaves
out what the greedy one states, or that was cut, is more probable than a whole one and contradicts nothing: it does not
agree. Every word stays the model's own: nothing is put in, and where no text agrees the greedy one stays, with its
warnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from braingemma.findings.text import findings_from_text
from braingemma.findings.vocabulary import Finding
from braingemma.measure.sizes import Measured
from braingemma.model.braingemma3d import BrainGemma3D, GeneratedReport
from braingemma.model.language import GenerationSettings, Progress
from braingemma.reading.doubts import Probabilities, doubts
from braingemma.reading.second_look import LesionLook

TEMPERATURE: Final = 1.0
"""Of the drawing: the distribution as it is, less its tail; a fixed seed, so that a study has one report."""
TOP_P: Final = 0.95
SEED: Final = 20


@dataclass(frozen=True)
class Candidate:
    """One text and how it stands to what the model sees.

    Attributes:
        text: The model's words.
        findings: What they say.
        score: Log-probability of the whole text given the picture, nats.
        tokens: How many the model wrote.
        ended: Whether the model ended it; else it was cut.
        agrees: Whether it ended, states the lesion's presence and all that the first text does, and classifier, map
            and measured ventricles deny nothing of it.
        taken: Whether it is the report.
    """

    text: str
    findings: tuple[Finding, ...]
    score: float
    tokens: int
    ended: bool
    agrees: bool
    taken: bool = False

    @property
    def unsure(self) -> float:
        """Mean of the negative log-probabilities of its tokens, nats."""
        return -self.score / max(1, self.tokens)

    @property
    def cut(self) -> tuple[str, ...]:
        """A warning where it was cut: what it does not say may only be missing."""
        if self.ended:
            return ()
        said = f"The text was cut after {self.tokens} tokens, before the model ended it"
        return (f"{said}: what it leaves open may only be missing.",)

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`."""
        return {
            "text": self.text,
            "findings": [finding.to_json() for finding in self.findings],
            "score": round(self.score, 4),
            "ended": self.ended,
            "agrees": self.agrees,
            "taken": self.taken,
        }


def write_candidates(
    model: BrainGemma3D,
    volume: Tensor,
    probabilities: Probabilities | None,
    look: LesionLook | None,
    measured: Sequence[Measured] = (),
    *,
    count: int,
    settings: GenerationSettings,
    progress: Progress | None = None,
) -> tuple[Candidate, ...]:
    """The text by `settings` first (greedy, unless they say otherwise); further ones only where it is contradicted.

    Args:
        model: The model.
        volume: (1, 1, D, H, W).
        probabilities: As for `doubts`.
        look: As for `doubts`.
        measured: As for `doubts`.
        count: Texts at most, the greedy one included.
        settings: How the first text is written; further ones differ in how tokens are drawn.
        progress: Called with the number of tokens written so far.

    Returns:
        One of them is taken.
    """

    def judged(written: GeneratedReport, first: Sequence[Finding] = ()) -> Candidate:
        return _candidate(written, probabilities, look, measured, first)

    first = judged(model.generate_batch(volume, settings=settings, progress=progress)[0])
    if first.agrees or count == 1:
        return chosen([first])
    drawing = replace(settings, temperature=TEMPERATURE, top_k=0, top_p=TOP_P, seed=SEED)
    drawn = model.generate_batch(volume, settings=drawing, progress=progress, copies=count - 1)
    return chosen([first, *(judged(written, first.findings) for written in drawn)])


def chosen(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The same with one taken: the most probable that agrees; the first where none does, or where it agrees itself."""
    agreeing = [n for n, candidate in enumerate(candidates) if candidate.agrees]
    best = 0 if 0 in agreeing else max(agreeing, key=lambda n: candidates[n].score, default=0)
    return tuple(replace(c, taken=n == best) for n, c in enumerate(candidates))


def _candidate(
    written: GeneratedReport,
    probabilities: Probabilities | None,
    look: LesionLook | None,
    measured: Sequence[Measured],
    first: Sequence[Finding],
) -> Candidate:
    findings = tuple(findings_from_text(written.text))
    denied = [d for d in doubts(findings, probabilities, look, measured) if d.witness != "second look"]
    silent = any(f.finding == "lesion" and f.presence == "undetermined" for f in findings)
    return Candidate(
        written.text,
        findings,
        sum(written.token_logprobs),
        len(written.token_ids),
        written.ended,
        agrees=written.ended and not denied and not silent and not _leaves_out(findings, first),
    )


def _leaves_out(findings: Sequence[Finding], first: Sequence[Finding]) -> bool:
    """Whether a text leaves open what the first one states: a finding's presence, or the side of a present one."""
    stated = {f.finding: f for f in first if f.presence != "undetermined"}
    unsided = {f.finding for f in first if f.presence == "present" and f.laterality is None}
    return any(
        f.finding in stated
        and (
            f.presence == "undetermined"
            or (f.presence == "present" and f.laterality is None and f.finding not in unsided)
        )
        for f in findings
    )
