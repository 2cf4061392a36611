"""Several tokens in one reading of the weights: a table of phrases guesses what comes, the model decides.

A pass over the last token and a few guesses costs little more than one over the last token alone, because on a
processor the weights are read once for all of them. A guess counts only if it is the very token that greedy writing
takes there, every change of the logits included (Leviathan et al., arXiv 2211.17192, at temperature 0; the table in
place of a draft model as in prompt lookup decoding). Source of the table: reports, which repeat each other's phrases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

LONGEST, SHORTEST = 4, 2
"""Longest run of tokens that the table looks up; longer ones are tried first."""
MOST_RUNS = 400_000
"""Runs that the table holds at most."""
NEAR = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How near the second token may come to the first, in parts of the largest logit, before one token decides alone:
several rows at once round otherwise than one, in the attention."""


class PhraseTable:
    """What followed which tokens in reports."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._after)

    def learn(self, ids: Sequence[int]) -> None:
        """Take in one report; nothing where the table is full."""
        for end in range(SHORTEST, len(ids)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                run = tuple(ids[end - length : end])
                if run in self._after or len(self._after) < MOST_RUNS:
                    counts = self._after.setdefault(run, {})
                    counts[ids[end]] = counts.get(ids[end], 0) + 1

    def learn_all(self, reports: Iterable[Sequence[int]]) -> None:
        """Take in many reports."""
        for ids in reports:
            self.learn(ids)

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that most often followed the end of `ids`, each upon those before it."""
        known = list(ids[-LONGEST:])
        for _ in range(count):
            token = self._next(known)
            if token is None:
                break
            known.append(token)
        return known[min(len(ids), LONGEST) :]

    def _next(self, known: list[int]) -> int | None:
        for length in range(min(LONGEST, len(known)), SHORTEST - 1, -1):
            counts = self._after.get(tuple(known[-length:]))
            if counts:
                return max(counts, key=lambda token: counts[token])
        return None


def is_near(scores: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tokens are so near in (1, V) scores that rounding might have chosen."""
    first, second = scores[0].topk(2).values.tolist()
    return first - second <= NEAR.get(dtype, NEAR[torch.bfloat16]) * max(abs(first), abs(second))
