"""Records to prepared cases: by `braingemma.volume.preprocess` alone, on all processors, kept for the next start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import torch

from braingemma.configuration import BrainGemmaConfig
from braingemma.errors import VolumeError
from braingemma.findings.text import findings_from_text
from braingemma.volume.preprocess import prepare_volume
from training.data.cases import Cases, load_cases, save_cases
from training.data.phantom_cases import mask_on_grid
from training.data.records import Record, raise_all
from training.data.splits import stable_number
from training.data.targets import findings_target
from training.errors import DataError
from training.phantoms.lesions import PARTS
from training.progress import Say

_FEW: Final = 12
"""Below this many cases, starting processes takes longer than preparing."""


def record_cases(records: Sequence[Record], config: BrainGemmaConfig, cache: Path, say: Say) -> Cases:
    """Prepared cases of these records, in order; their volumes stay in files of `cache` until they are read.

    Raises:
        DataError: every volume that cannot be prepared, at once.
    """
    jobs = [(config.to_dict(), record, cache) for record in records]
    files: list[Path] = []
    problems: list[str] = []
    for result in _map(jobs):
        if isinstance(result, str):
            problems.append(result)
        else:
            files.append(result)
        say(f"preparing case {len(files) + len(problems)}/{len(jobs)}")
    raise_all(problems)
    return replace(Cases.join([load_cases(file) for file in files]), synthetic=False)


def _map(jobs: Sequence[tuple[dict[str, Any], Record, Path]]) -> Iterator[Path | str]:
    if len(jobs) <= _FEW:
        yield from map(_prepare, jobs)
        return
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_prepare_alone, jobs, chunksize=4)


def _prepare_alone(job: tuple[dict[str, Any], Record, Path]) -> Path | str:
    torch.set_num_threads(1)
    return _prepare(job)


def _prepare(job: tuple[dict[str, Any], Record, Path]) -> Path | str:
    """The file of the case, or what is wrong with it."""
    raw, record, cache = job
    config = BrainGemmaConfig(**raw)
    kept = cache / f"record-{stable_number(_identity(record, config)):016x}.safetensors"
    if kept.exists():
        return kept
    try:
        save_cases(prepare_record(record, config), kept)
    except (VolumeError, DataError) as error:
        return f"{record.name}: {error}"
    return kept


def _identity(record: Record, config: BrainGemmaConfig) -> str:
    """Changes with the files, the report and the preprocessing."""
    files = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in (record.image, record.mask) if p]
    return repr((files, record.report, config.volume_settings))


def prepare_record(record: Record, config: BrainGemmaConfig) -> Cases:
    """One record as the model takes it; a case without a mask gets an empty one.

    Raises:
        VolumeError: the image cannot be prepared.
        DataError: the mask does not lie on the image's grid.
    """
    prepared = prepare_volume(record.image, config)
    masks = np.zeros((len(PARTS), *prepared.tensor.shape[2:]), bool)
    if record.mask is not None:
        mask = nibabel.as_closest_canonical(nibabel.load(record.mask))
        if mask.shape != prepared.source_shape or not np.allclose(mask.affine, prepared.source_affine, atol=1e-2):
            raise DataError(f"{record.mask}: expected a mask on the grid of {record.image.name}")
        # Which part of the lesion a voxel is, is not known for every mask: all of it counts as the first.
        masks[0] = mask_on_grid((np.asarray(mask.dataobj) > 0).astype(np.float32), prepared)
    findings = findings_from_text(record.report)
    return Cases(
        volumes=prepared.tensor.half(),
        masks=torch.from_numpy(masks)[None],
        targets=findings_target(findings)[None],
        findings=(findings,),
        reports=(record.report,),
        synthetic=False,
    )


def unmasked_lesions(records: Sequence[Record]) -> list[str]:
    """The records that have a lesion by their report and no mask: a dense loss would learn that there is none."""
    return [
        record.name
        for record in records
        if record.mask is None and findings_from_text(record.report)[0].presence != "absent"
    ]
