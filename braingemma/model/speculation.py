"""Several tokens in one reading of the weights: a table of phrases guesses what comes, the model decides.

A pass over the last token and a few guesses costs little more than one over the last token alone, because on a
processor the weights are read once for all of them. A guess counts only if it is the very token that greedy writing
takes there, every change of the logits included (Leviathan et al., arXiv 2211.17192, at temperature 0; the table in
place of a draft model as in prompt lookup decoding). Each token gets the same bits as if it came alone (`RowsApart`),
so that no rounding decides otherwise. Source of the table: reports, which repeat each other's phrases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from braingemma.quantize.few_rows import FEW, few_rows

LONGEST, SHORTEST = 6, 1
"""Longest run of tokens that the table looks up; longer ones are tried first."""
LIKELY = 0.3
"""A guess is made where the chance that it and those before it are right is at least this: it costs about as much of a
pass over one token."""
MOST_RUNS = 400_000
"""Runs that the table holds at most."""
MOST_GUESSES = FEW - 1
"""With the token before them they are as many rows as share one reading of a packed weight."""


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
        """At most `count` tokens that most often followed the end of `ids`, each upon those before it, if `LIKELY`."""
        known, chance = list(ids[-LONGEST:]), 1.0
        for _ in range(count):
            token, share = self._next(known)
            chance *= share
            if chance < LIKELY:
                break
            known.append(token)
        return known[min(len(ids), LONGEST) :]

    def _next(self, known: list[int]) -> tuple[int, float]:
        """What most often followed, and its share with half a time that nobody saw."""
        for length in range(min(LONGEST, len(known)), SHORTEST - 1, -1):
            counts = self._after.get(tuple(known[-length:]))
            if counts:
                token = max(counts, key=lambda token: counts[token])
                return token, counts[token] / (sum(counts.values()) + 0.5)
        return -1, 0.0


def rows_stay_apart(language_model: Any) -> bool:
    """Whether `RowsApart` keeps its promise for a model, and there is time to spare: on a CPU, with the library."""
    attention = language_model.config._attn_implementation
    return language_model.device.type == "cpu" and attention == "sdpa" and few_rows() is not None


class RowsApart(TorchFunctionMode):
    """Within, several tokens of one text that are read at once give the bits that each gives alone, see above.

    torch's products and its attention choose the order of their sums by the number of rows, so these get one row after
    the other, which in attention meets itself and all before it. Packed weights and the output head, where the time
    goes, are read once for all: `few_rows` does the same for each row, whatever comes with it. All else that a layer
    does is done to each number, or each row, by itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of each function of torch."""
        if func is not F.linear and func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs) if kwargs else func(*args)
        first, *others = args
        rows = first.split(1, dim=-2)
        if func is F.linear:
            return torch.cat([func(row, *others, **(kwargs or {})) for row in rows], dim=-2)
        keys, values, *_ = others
        alone = {**(kwargs or {}), "attn_mask": None, "is_causal": False}
        known = keys.shape[-2] - len(rows) + 1
        found = [
            func(row, keys[..., : known + place, :], values[..., : known + place, :], **alone)
            for place, row in enumerate(rows)
        ]
        return torch.cat(found, dim=-2)
