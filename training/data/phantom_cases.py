"""Phantoms as prepared cases."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from braingemma.configuration import BrainGemmaConfig
from braingemma.volume.brain import BrainMask
from braingemma.volume.preprocess import PreparedVolume, prepare_image
from braingemma.volume.resampling import resample_box
from training.data.cases import Cases, load_cases, save_cases
from training.data.targets import findings_target
from training.phantoms.generator import Difficulty
from training.phantoms.lesions import PARTS
from training.phantoms.phantom import Phantom, make_phantom
from training.progress import Say
from training.settings import DataSettings


def training_spacing(seed: int) -> tuple[float, float, float]:
    """Voxel sizes at which phantoms are drawn for training: coarse, often with thicker slices on one axis."""
    rng = np.random.default_rng([seed, 99])
    size = np.full(3, rng.uniform(2.2, 3.0))
    if rng.random() < 0.5:
        size[rng.choice(3, p=[0.15, 0.1, 0.75])] = rng.uniform(3, 6)
    return float(size[0]), float(size[1]), float(size[2])


KINDS: Final[dict[str, dict[str, Any]]] = {
    "any": {},
    "bilateral": {"both_sides": True},
    "plaques": {"with_lesion": False, "large_plaques": True},
    "plain": {"difficulty": "plain"},
}
"""Which phantoms: as they come, or those that `[data]` asks for by this name, as arguments of `make_phantom`."""


def training_phantom(seed: int, kind: str = "any", difficulty: Difficulty = "plain") -> Phantom:
    """A coarse phantom of one of `KINDS`; half of them come without skull, since serving takes it off anyway."""
    stripped = bool(np.random.default_rng([seed, 98]).random() < 0.5)
    asked = {"difficulty": difficulty, **KINDS[kind]}
    return make_phantom(seed, spacing=training_spacing(seed), stripped=stripped, **asked)


def prepare_case(phantom: Phantom, config: BrainGemmaConfig) -> Cases:
    """One phantom through the path that serving takes, with its mask on the model's grid.

    Its brain is the one that an extraction would find, drawn with the phantom: the real one takes seconds a volume.
    """
    found = phantom.extracted
    brain = None if found is None else BrainMask.of(found, phantom.volume.header.get_zooms()[:3])
    prepared = prepare_image(phantom.volume, config, brain=brain)
    masks = [mask_on_grid((phantom.parts == part).astype(np.float32), prepared) for part in PARTS]
    return Cases(
        volumes=prepared.tensor.half(),
        masks=torch.from_numpy(np.stack(masks))[None],
        targets=findings_target(phantom.findings)[None],
        findings=(phantom.findings,),
        reports=(str(phantom.truth["report"]),),
    )


def mask_on_grid(mask: NDArray[np.float32], prepared: PreparedVolume) -> NDArray[np.bool_]:
    """A mask (X, Y, Z) of the RAS source to the tensor's grid (D, H, W): where it fills half a voxel or more."""
    to_source = np.linalg.inv(prepared.source_affine) @ prepared.grid_affine
    step = np.diag(to_source)[:3]
    lower = to_source[:3, 3] - step / 2
    sizes = prepared.settings.grid[::-1]
    share = resample_box(mask, lower, lower + step * np.array(sizes), sizes, 0.0)
    return np.ascontiguousarray(share.transpose(2, 1, 0) > 0.5)


_CHUNK: Final = 25


def training_cases(data: DataSettings, config: BrainGemmaConfig, cache: str, say: Say = print) -> tuple[Cases, Cases]:
    """(training, validation) phantoms; those of a kind that was asked for have the seeds after validation's."""
    seed = data.seed + data.count
    with _drawers() as pool:
        draw = partial(_phantom_cases, pool, config, cache=cache, say=say, difficulty=data.difficulty)
        train = [draw(data.seed, data.count)]
        validation = draw(seed, data.validation)
        seed += data.validation
        for kind, count in (("bilateral", data.bilateral), ("plain", data.plain), ("plaques", data.plaques)):
            if count:
                train.append(draw(seed, count, kind=kind))
            seed += count
    return Cases.join(train), validation


def judging_cases(data: DataSettings, config: BrainGemmaConfig, cache: str, say: Say = print) -> list[Cases]:
    """Phantoms that take no part in training or validation, by `data.judging`: as hard as asked for, then plain."""
    if not data.judging:
        return []
    seed = data.seed + data.count + data.validation + data.bilateral + data.plain + data.plaques
    with _drawers() as pool:
        draw = partial(_phantom_cases, pool, config, cache=cache, say=say, difficulty=data.difficulty)
        return [draw(seed, data.judging), draw(seed + data.judging, data.judging, kind="plain")]


def phantom_cases(
    config: BrainGemmaConfig,
    first: int,
    count: int,
    cache: str = "",
    say: Say = print,
    kind: str = "any",
    difficulty: Difficulty = "plain",
) -> Cases:
    """Prepared phantoms of the seeds `first` … `first + count - 1`, drawn by all processors; kept in `cache`."""
    with _drawers() as pool:
        return _phantom_cases(pool, config, first, count, cache, say, kind, difficulty)


def _drawers() -> ProcessPoolExecutor:
    """As many as there are processors; each begins when there is work for it, and loads torch once."""
    return ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn"))


def _phantom_cases(
    pool: ProcessPoolExecutor,
    config: BrainGemmaConfig,
    first: int,
    count: int,
    cache: str,
    say: Say,
    kind: str = "any",
    difficulty: Difficulty = "plain",
) -> Cases:
    starts = range(first, first + count, _CHUNK)
    jobs = [(config.to_dict(), start, min(_CHUNK, first + count - start), cache, kind, difficulty) for start in starts]
    parts: list[Cases] = []
    for number, part in enumerate(pool.map(_draw_chunk, jobs)):
        parts.append(part)
        if number % 10 == 9:
            say(f"phantoms: {sum(map(len, parts))} of {count}")
    return Cases.join(parts)


def _draw_chunk(job: tuple[dict[str, Any], int, int, str, str, Difficulty]) -> Cases:
    torch.set_num_threads(1)
    threadpool_limits(1)  # one process for each processor: BLAS threads of their own would only spin
    raw, start, count, cache, kind, difficulty = job
    config = BrainGemmaConfig(**raw)
    file = None
    if cache:
        name = f"phantoms-{config.volume_settings!r}-{start}-{count}-{kind}-{difficulty}"
        file = Path(cache) / f"phantoms-{_short_digest(name)}.safetensors"
        if file.exists():
            return load_cases(file)
    seeds = range(start, start + count)
    cases = Cases.join([prepare_case(training_phantom(seed, kind, difficulty), config) for seed in seeds])
    if file is not None:
        save_cases(cases, file)
    return cases


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
