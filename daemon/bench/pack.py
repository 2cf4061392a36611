"""`braingemma bench pack`: how long the result objects of one study take, from the volumes to checked files on disk.

A phantom on the grid of BraTS; the saliency map and the lesion estimate are blocks. `dciodvfy` runs where it is there,
as it does before results are sent.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from daemon.bench.pipeline import SHAPE, brats_like_volume
from dicom_io.content.report import FindingRecord, MeasurementRecord, ModelIdentity, ReportContent
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.pack.validate import dciodvfy_path
from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from dicom_io.volume.nifti import Conversion, convert_series
from training.progress import Say


def bench_pack(folder: Path | None = None, *, slices: int = SHAPE[2], rounds: int = 3, say: Say) -> dict[str, Any]:
    """Measure it.

    Args:
        folder: Where the files go: on the disk that counts; None: a temporary folder.
        slices: Slices of the study.
        rounds: Packs; the median counts.
        say: Told in one line what is being done.

    Returns:
        `seconds` (median), `fastest`, `slowest`, `cpu_seconds` (median, this process), `objects`, `slices`, `rounds`,
        `dciodvfy`, `cores`.
    """
    with tempfile.TemporaryDirectory(prefix="braingemma-bench-", dir=folder) as temporary:
        work = Path(temporary)
        say("drawing the study")
        files = write_series(brats_like_volume(slices), work / "source")
        [series] = scan_folder(work / "source").series
        conversion = convert_series(series, work / "volume_ras.nii.gz")
        saliency, lesion, volume_ml = _regions(conversion, work)
        walls, cpus, objects = [], [], 0
        for number in range(rounds):
            say(f"pack {number + 1} of {rounds}")
            wall, cpu = time.perf_counter(), time.process_time()
            pack = encode_pack(
                source_files=files,
                geometry=conversion.geometry,
                volume_path=conversion.volume_path,
                saliency_path=saliency,
                lesion_path=lesion,
                content=_content(volume_ml),
                kinds=wanted(),
                identity="bench",
                out=work / f"pack{number}",
            )
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
            objects = len(pack.objects)
    return {
        "seconds": round(statistics.median(walls), 2),
        "fastest": round(min(walls), 2),
        "slowest": round(max(walls), 2),
        "cpu_seconds": round(statistics.median(cpus), 2),
        "objects": objects,
        "slices": slices,
        "rounds": rounds,
        "dciodvfy": dciodvfy_path() is not None,
        "cores": os.cpu_count(),
    }


def _regions(conversion: Conversion, work: Path) -> tuple[Path, Path, float]:
    """Weights on the volume's grid: a block that supports, on the left, and one that speaks against.

    Returns:
        The weights, the mask of the block that supports, and its volume, mL.
    """
    image = nibabel.load(conversion.volume_path)
    weights = np.zeros(image.shape, dtype=np.float32)
    r, a, s = image.shape
    weights[r // 4 : r * 2 // 5, a * 2 // 5 : a * 3 // 5, s * 2 // 5 : s * 3 // 5] = 0.7
    weights[r * 3 // 5 : r * 3 // 4, a * 2 // 5 : a * 3 // 5, s * 2 // 5 : s * 3 // 5] = -0.2
    saliency, lesion = work / "saliency.nii.gz", work / "lesion.nii.gz"
    nibabel.save(nibabel.Nifti1Image(weights, image.affine), saliency)
    nibabel.save(nibabel.Nifti1Image((weights > 0).astype(np.uint8), image.affine), lesion)
    return saliency, lesion, float((weights > 0).sum()) * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000


def _content(volume_ml: float) -> ReportContent:
    return ReportContent(
        report_text="The lesion area is in the left parietal lobe. Edema is seen around it.",
        findings=(FindingRecord("lesion", "present", "left", ("parietal",), 0.9), FindingRecord("edema", "present")),
        warnings=(),
        banner="A measurement, of no patient.",
        intended_use="Research use only; not a medical device.",
        model=ModelIdentity("none", "0", "0" * 64, "none", {}),
        explain={"method": "none", "samples": 0},
        measurements=(MeasurementRecord("lesion_volume", round(volume_ml, 1), "mL", "none", "left"),),
    )
