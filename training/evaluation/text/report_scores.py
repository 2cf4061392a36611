"""Report scores that need models of their own: RadGraph-XL F1, RaTEScore and GREEN, each from a local folder.

They are an optional extra, and nothing is downloaded: whoever wants them names the folders that hold the weights. All
three were made for other regions of the body and other reports (most of them chest), so they are no part of any table
here; they stand apart in `evaluation.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import constants as hub

from training.errors import DataError

SCORES: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "radgraph": ("radgraph", "pip install 'braingemma3d-pacs[scores]'", ("radgraph-xl/weights.th",)),
    "ratescore": (
        "RaTEScore",
        "pip install 'braingemma3d-pacs[scores]'",
        ("RaTE-NER-Deberta/config.json", "BioLORD-2023-C/config.json"),
    ),
    "green": ("green_score", "install GREEN from its repository, Stanford-AIMI/GREEN", ("config.json",)),
}
"""Name: the package that computes it and how that comes, and what its folder must hold."""


def parse_folders(stated: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` of each score that is asked for, checked before anything is computed.

    Raises:
        DataError: everything that is wrong, at once: unknown names, missing folders or files.
    """
    folders, problems = {}, []
    for entry in stated:
        name, _, folder = entry.partition("=")
        if name not in SCORES or not folder:
            problems.append(f"expected NAME=FOLDER with a name out of {', '.join(SCORES)}, got {entry!r}")
            continue
        missing = [file for file in SCORES[name][2] if not (Path(folder) / file).exists()]
        problems += [f"{name}: expected {Path(folder) / file}, which is not there" for file in missing]
        folders[name] = Path(folder)
    if problems:
        raise DataError("\n".join(problems))
    return folders


def report_scores(folders: Mapping[str, Path], references: Sequence[str], reports: Sequence[str]) -> dict[str, float]:
    """The mean of each score over the cases.

    Raises:
        DataError: a package is not installed.
    """
    return {name: _COMPUTE[name](folder, list(references), list(reports)) for name, folder in folders.items()}


def _package(name: str) -> Any:
    # What the hub's library looks at before each request; the environment is read once, when it is imported.
    hub.HF_HUB_OFFLINE = True
    module, remedy, _ = SCORES[name]
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"{name}: needs the package {module}: {remedy} ({error})") from error


def _radgraph(folder: Path, references: list[str], reports: list[str]) -> float:
    """RadGraph-XL F1, entities and whether they have a relation ("partial"; Delbrouck et al., ACL Findings 2024)."""
    scorer = _package("radgraph").F1RadGraph(
        reward_level="partial",
        model_type="radgraph-xl",
        model_cache_dir=str(folder),
        tokenizer_cache_dir=str(folder),
        cuda=0 if torch.cuda.is_available() else -1,
    )
    mean, *_ = scorer(refs=references, hyps=reports)
    return float(mean)


def _ratescore(folder: Path, references: list[str], reports: list[str]) -> float:
    """RaTEScore (Zhao et al., EMNLP 2024)."""
    scorer = _package("ratescore").RaTEScore(
        bert_model=str(folder / "RaTE-NER-Deberta"),
        eval_model=str(folder / "BioLORD-2023-C"),
        use_gpu=torch.cuda.is_available(),
    )
    scores = scorer.compute_score(reports, references)
    return float(sum(scores) / len(scores))


def _green(folder: Path, references: list[str], reports: list[str]) -> float:
    """GREEN (Ostmeier et al., EMNLP Findings 2024)."""
    mean, *_ = _package("green").GREEN(str(folder), output_dir=str(folder))(references, reports)
    return float(mean)


_COMPUTE: Final[dict[str, Callable[[Path, list[str], list[str]], float]]] = {
    "radgraph": _radgraph,
    "ratescore": _ratescore,
    "green": _green,
}
