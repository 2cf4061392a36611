"""Overlap of report and reference, as captioning measures it, from the libraries that define the measures.

BLEU: sacrebleu; ROUGE-L: Google's rouge-score; CIDEr: the COCO caption code. None of them needs Java or a download;
METEOR is its authors' program, which the COCO caption code brings along and which runs where Java is installed.
All read the same tokens: lower case, words and marks apart. These numbers say how alike two texts are written, not
whether they agree: beside them stand the measures of `training.evaluation.metrics`, and reports that never look.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, Self

import numpy as np
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

TEXT_MEASURES: Final = ("bleu_1", "bleu_4", "rouge_l", "cider")
"""In the order of the model card's table."""
_TOKENIZE: Final = Tokenizer13a()
METEOR_SECONDS: Final = 600
"""METEOR's program is ended after this long."""

CARD_KEYWORDS: Final = {
    "laterality": ("left", "right", "bilateral"),
    "anatomy": (
        "frontal",
        "parietal",
        "temporal",
        "occipital",
        "insula",
        "cerebellum",
        "brainstem",
        "thalamus",
        "basal ganglia",
        "corpus callosum",
        "ventricle",
    ),
    "pathology": ("lesion", "edema", "necrosis", "compression", "tumor", "mass", "hemorrhage", "infarct"),
}
"""The words that the published evaluation looks for, as bare substrings (arXiv 2602.22098): kept to compare with
its figures. "No edema" counts as edema there."""


def tokens(report: str) -> str:
    """Lower-case tokens of mteval-v13a, with single spaces between them."""
    return str(_TOKENIZE(report.lower()))


def text_measures(references: Sequence[str], reports: Sequence[str]) -> dict[str, float | None]:
    """BLEU-1, BLEU-4 over the corpus; means of ROUGE-L and CIDEr over cases.

    A report that is empty, since its case failed, counts with what it shares with the reference: nothing. CIDEr weighs
    words by how few references have them, so it needs at least two; None below.
    """
    if len(references) != len(reports):
        raise ValueError(f"expected a report for each of {len(references)} references, got {len(reports)}")
    if not references:
        return dict.fromkeys(TEXT_MEASURES)
    truth, stated = [tokens(text) for text in references], [tokens(text) for text in reports]
    return {
        "bleu_1": _bleu(truth, stated, 1),
        "bleu_4": _bleu(truth, stated, 4),
        "rouge_l": _rouge_l(truth, stated),
        "cider": _cider(truth, stated),
    }


def _bleu(truth: Sequence[str], stated: Sequence[str], order: int) -> float:
    """Papineni et al., 2002; in [0, 1]."""
    scorer = BLEU(max_ngram_order=order, tokenize="none", force=True)
    return float(scorer.corpus_score(list(stated), [list(truth)]).score) / 100


class _Words:
    """rouge-score's tokenizer interface over text that is tokenised already."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def _rouge_l(truth: Sequence[str], stated: Sequence[str]) -> float:
    """F-measure of the longest common subsequence (Lin, 2004)."""
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return float(np.mean([scorer.score(t, s)["rougeL"].fmeasure for t, s in zip(truth, stated, strict=True)]))


def _cider(truth: Sequence[str], stated: Sequence[str]) -> float | None:
    """CIDEr-D (Vedantam et al., arXiv 1411.5726), in [0, 10] as the COCO code gives it."""
    if len(truth) < 2:
        return None
    score, _ = Cider().compute_score({i: [t] for i, t in enumerate(truth)}, {i: [s] for i, s in enumerate(stated)})
    return float(score)


def meteor(writers: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> tuple[dict[str, float], str]:
    """METEOR 1.5 (Denkowski and Lavie, 2014) over the cases of each writer, in [0, 1].

    Args:
        writers: (references, reports) of each.

    Returns:
        (values, ""), or ({}, why there are none).
    """
    java = shutil.which("java")
    if java is None:
        return {}, "METEOR needs Java, and there is none on this machine"
    jar = files("pycocoevalcap") / "meteor" / "meteor-1.5.jar"
    command = [java, "-Xmx2G", "-XX:+UseSerialGC", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    pairs = [(t, s) for references, reports in writers.values() for t, s in zip(references, reports, strict=True)]
    try:
        with _Meteor(command) as program:
            stats = iter([program.ask(f"SCORE ||| {_one_line(t)} ||| {_one_line(s)}") for t, s in pairs])
            values = {}
            for name, (_, reports) in writers.items():
                mine = list(itertools.islice(stats, len(reports)))
                # One value for each case, then that of all.
                first = program.ask(" ||| ".join(["EVAL", *mine]))
                values[name] = float([first, *(program.answer() for _ in mine)][-1])
    except (OSError, ValueError) as error:
        return {}, f"METEOR did not run: {' '.join(str(error).split())[:200]}"
    return values, ""


class _Meteor:
    """METEOR's program, which answers line by line: its tables of paraphrases are read once."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
        self._silent = threading.Timer(METEOR_SECONDS, self._process.kill)

    def __enter__(self) -> Self:
        self._silent.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._silent.cancel()
        self._process.kill()
        self._process.communicate()

    def ask(self, line: str) -> str:
        """The first line of its answer.

        Raises:
            OSError, ValueError: it has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """The next line of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the program ended with exit code {self._process.wait()}")
        return line.strip()


def _one_line(text: str) -> str:
    """As `tokens`, without METEOR's own separator."""
    return " ".join(tokens(text).replace("|||", " ").split())


def keyword_f1(references: Sequence[str], reports: Sequence[str]) -> dict[str, float | None]:
    """The published evaluation's F1: bare keywords of each case, mean over cases, nothing against nothing as 1.

    It rewards saying a word, not being right: a constant report can reach 1. For comparison alone.
    """
    result: dict[str, float | None] = {}
    for name, words in CARD_KEYWORDS.items():
        scores = [_set_f1(_found(t, words), _found(s, words)) for t, s in zip(references, reports, strict=True)]
        result[f"keyword_{name}_f1"] = float(np.mean(scores)) if scores else None
    return result


def _found(report: str, words: Sequence[str]) -> set[str]:
    lowered = report.lower()
    return {word for word in words if word in lowered}


def _set_f1(truth: set[Any], stated: set[Any]) -> float:
    if not truth and not stated:
        return 1.0
    return 2 * len(truth & stated) / (len(truth) + len(stated))


def text_intervals(
    references: Sequence[str], reports: Sequence[str], samples: int = 100, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the text measures by resampling cases (Efron, 1979).

    CIDEr's word weights are those of all references, as in the figure itself.
    """
    if len(references) < 2:
        return {}
    truth, stated = [tokens(text) for text in references], [tokens(text) for text in reports]
    _, cider = Cider().compute_score({i: [t] for i, t in enumerate(truth)}, {i: [s] for i, s in enumerate(stated)})
    rouge = np.array([_rouge_l([t], [s]) for t, s in zip(truth, stated, strict=True)])
    rng = np.random.default_rng(seed)
    drawn: list[tuple[float, ...]] = []
    for _ in range(samples):
        index = rng.integers(len(truth), size=len(truth))
        some = [truth[i] for i in index], [stated[i] for i in index]
        drawn.append((_bleu(*some, 1), _bleu(*some, 4), float(rouge[index].mean()), float(np.mean(cider[index]))))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(TEXT_MEASURES, low, high, strict=True)}
