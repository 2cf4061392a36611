"""Step "report": the picture checked, the report written, and held against what else the model sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from braingemma.checkpoint.weights import WeightsInfo
from braingemma.checks.domain import load_domain
from braingemma.checks.input import Check, check_input
from braingemma.errors import GenerationError
from braingemma.explain.grounding import lesion_mask
from braingemma.measure.brain import BrainMeasures, measure_picture
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.reading.candidates import Candidate, write_candidates
from braingemma.reading.chance import ChanceOfError, weighed
from braingemma.reading.doubts import Probabilities, with_verdicts
from braingemma.reading.second_look import LesionLook, look_twice
from braingemma.volume.brain import BrainMask, Mask, find_brain
from braingemma.volume.face import brain_of_head, without_face
from braingemma.volume.preprocess import PreparedVolume, prepare_volume
from braingemma.volume.source import read_source
from daemon.assemble.arrival import warnings_of
from daemon.config.sections import Checks
from daemon.errors import Rejected
from daemon.files import whole
from daemon.jobs import records
from daemon.jobs.comparison import compare
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report
from daemon.jobs.report import INTENDED_USE, SMALL_LESIONS, write_report
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.nameless import nameless


def look(context: Context, folder: JobFolder) -> None:
    """Find the brain before the report asks for it, in another thread, while the model works: the mask is kept."""
    del context
    picture = read_source(folder.whole_head if folder.whole_head.exists() else folder.volume)
    find_brain(picture.voxels, np.linalg.norm(picture.affine[:3, :3], axis=0))


def report(context: Context, folder: JobFolder) -> None:
    """The report with its findings, warnings and provenance."""
    context.progress(0, 1, "checking the picture")
    picture = folder.whole_head if folder.whole_head.exists() else folder.volume
    checks = check_picture(picture, context.weights, context.settings.checks)
    brain = _remove_face(picture, folder) if context.settings.results.deface else None
    context.progress(0, 1, "loading the model")
    model = context.model
    prepared = prepare_volume(folder.volume, model.config, brain=brain if _extracts(model) else None)
    _save_brain(folder, prepared)
    limit = context.settings.model.max_new_tokens
    probabilities = _probabilities(model, prepared)
    look = look_twice(model, prepared)
    context.progress(0, 1, "measuring")
    sizes = measure_picture(folder.volume, prepared)
    candidates = write_candidates(
        model,
        prepared.tensor,
        probabilities,
        look,
        sizes.measured,
        count=1 if model.config.published else context.settings.model.candidates,
        settings=model.generation_settings(**context.settings.model.decoding()),
        progress=lambda done: context.progress(done, limit, "writing, token"),
    )
    text = next(candidate for candidate in candidates if candidate.taken)
    require_words(text)
    fitted = ChanceOfError.from_json(model.config.doubt)
    found, chance = weighed(fitted, text.findings, probabilities, look, sizes.measured, text.unsure)
    of_the_text = (*text.cut, *(doubt.text for doubt in found))
    warnings = (
        *_arrival_warnings(folder),
        *dict.fromkeys((*_conversion_warnings(folder), *prepared.warnings)),  # both look at a NIfTI header
        *(check.detail for check in checks if check.passed is False),
        *of_the_text,
    )
    said = with_verdicts(text.findings, probabilities, look, sizes.measured, chance)
    record = Report(
        report=text.text,
        findings=tuple(records.ReportFinding(**finding.to_json()) for finding in said),
        lesion_estimate=None if look is None else records.LesionEstimate(**look.to_json()),
        candidates=tuple(records.Candidate.model_validate(candidate.to_json()) for candidate in candidates),
        measurements=(*_lesion_volume(folder, prepared, look), *_measurements(sizes)),
        unmeasured=tuple(records.Unmeasured(**vars(lacking)) for lacking in sizes.unmeasured),
        input=_input_facts(folder, prepared, checks, defaced=context.settings.results.deface),
        model=_model_facts(context),
        warnings=warnings,
        doubts=of_the_text,
        banner=context.weights.banner,
        intended_use=f"{INTENDED_USE} {SMALL_LESIONS}" if context.weights.bundled else INTENDED_USE,
    )
    earlier = records.EarlierResult.read_if_there(folder.earlier)
    if earlier is not None:
        dated = not context.settings.results.deidentify
        compared = compare(earlier, record, earlier.study_date_now, dated=dated)
        record = record.model_copy(update={"comparison": compared})
    record = nameless(context.settings, folder, record)
    write_report(folder, record, named=not context.settings.results.deidentify)


def require_words(written: Candidate) -> None:
    """An empty report says nothing about the patient, and is no report.

    Raises:
        GenerationError: the model wrote no word.
    """
    if written.text:
        return
    wrote = f"{written.tokens} tokens without a word" if written.tokens else "the end of the report before any word"
    raise GenerationError(f"the report is empty: the model wrote {wrote}")


def check_picture(volume: Path, weights: WeightsInfo, wanted: Checks) -> tuple[Check, ...]:
    """Check a converted volume as `[checks]` asks.

    Args:
        volume: RAS NIfTI.
        weights: Whose training pictures it is held against.
        wanted: What is checked, and what a failure means.

    Returns:
        The checks that are switched on, failed ones included: they become warnings.

    Raises:
        Rejected: a check failed that the site wants to refuse by.
    """
    wishes = wanted.model_dump()
    if all(wish == "off" for wish in wishes.values()):
        return ()
    found = tuple(check for check in check_input(volume, load_domain(weights)) if wishes[check.name] != "off")
    refused = [check for check in found if check.passed is False and wishes[check.name] == "refuse"]
    if refused:
        why = " ".join(check.detail for check in refused)
        raise Rejected(f"refused before the model by [checks] {', '.join(check.name for check in refused)}: {why}")
    return found


def _remove_face(picture: Path, folder: JobFolder) -> BrainMask:
    """`volume_ras.nii.gz` from the picture of the whole head; from here on nothing else is looked at.

    Returns:
        The brain as it was found in the whole head: the model is given the same mask as without this.

    Raises:
        VolumeError: the mask is not believed; no volume is written.
    """
    source = read_source(picture)
    brain = brain_of_head(source.voxels, source.affine)
    defaced = without_face(nibabel.load(picture), brain)
    with whole(folder.volume) as draft:
        nibabel.save(defaced, draft)
    return brain


def _extracts(model: BrainGemma3D) -> bool:
    """Whether the weights' reading looks for the brain."""
    settings = model.config.volume_settings
    return settings.reading == "whole" or settings.brain_extraction == "auto"


def _probabilities(model: BrainGemma3D, prepared: PreparedVolume) -> Probabilities | None:
    """Of each finding, by the findings head; None where the weights have none."""
    known = model.finding_probabilities(prepared.tensor)
    return known if isinstance(known, dict) else None


def _measurements(sizes: BrainMeasures) -> tuple[records.Measurement, ...]:
    return tuple(records.Measurement(**measured.to_json()) for measured in sizes.measured)


def _lesion_volume(
    folder: JobFolder, prepared: PreparedVolume, look: LesionLook | None
) -> tuple[records.Measurement, ...]:
    """The lesion's volume where the map shows one, with the mask that has this volume beside the report."""
    folder.lesion.unlink(missing_ok=True)  # of an earlier run
    if look is None or not look.first.stated:
        return ()
    _save_mask(folder.lesion, folder, prepared, lesion_mask(look.patches, prepared))
    measured = records.Measurement(
        name="lesion_volume",
        value=round(look.first.volume_ml, 1),
        unit="mL",
        method="lesion map of the model",
        laterality=look.first.laterality,
    )
    return (measured,)


def _save_brain(folder: JobFolder, prepared: PreparedVolume) -> None:
    """The brain mask beside the volume, on its grid."""
    _save_mask(folder.brain_mask, folder, prepared, prepared.brain)


def _save_mask(path: Path, folder: JobFolder, prepared: PreparedVolume, mask: Mask) -> None:
    """A mask on the grid of the volume, with its header."""
    image = nibabel.Nifti1Image(mask.astype(np.uint8), prepared.source_affine, nibabel.load(folder.volume).header)
    image.set_data_dtype(np.uint8)
    image.header.set_slope_inter(1, 0)
    with whole(path) as draft:
        nibabel.save(image, draft)


def _input_facts(
    folder: JobFolder, prepared: PreparedVolume, checks: Sequence[Check], *, defaced: bool
) -> records.ReportInput:
    image = nibabel.load(folder.volume)
    selection = records.Selection.read_if_there(folder.selection)
    source = records.SourceFile.read_if_there(folder.source_facts)
    return records.ReportInput(
        series_uid=None if selection is None else selection.chosen,
        file=None if source is None else source.file,
        shape=tuple(int(n) for n in image.shape),
        spacing_mm=tuple(round(float(s), 4) for s in image.header.get_zooms()[:3]),
        orientation="".join(nibabel.aff2axcodes(image.affine)),
        sha256=voxel_digest(image),
        defaced=defaced,
        preprocessing=prepared.facts(),
        checks=tuple(records.Check(**check.to_json()) for check in checks),
    )


def _model_facts(context: Context) -> records.ReportModel:
    model, info = context.model, context.weights
    return records.ReportModel(
        name=info.name,
        version=info.version,
        weights_sha256=info.sha256,
        format=info.format,
        prompt=model.config.prompt,
        generation=model.generation_settings(**context.settings.model.decoding()).facts(),
        device=model.compute_device.type,
        quantization=model.quantization,
        head_bits=model.head_bits,
    )


def voxel_digest(image: nibabel.Nifti1Image) -> str:
    """sha256 of the voxels and the affine: the same for the same picture, however the file was compressed."""
    digest = hashlib.sha256(np.ascontiguousarray(image.affine, dtype=np.float64).tobytes())
    digest.update(np.ascontiguousarray(np.asanyarray(image.dataobj)).tobytes())
    return digest.hexdigest()


def _arrival_warnings(folder: JobFolder) -> list[str]:
    """What is to be known of how the instances of the series came by C-STORE."""
    arrival = records.Arrival.read_if_there(folder.arrival)
    if arrival is None:
        return []
    selection = records.Selection.read(folder.selection)
    return [] if selection.chosen is None else warnings_of(arrival, selection.uids_of(selection.chosen))


def _conversion_warnings(folder: JobFolder) -> list[str]:
    """What was noticed on the way to the volume: by the conversion or import, and files that take no part."""
    conversion = records.Conversion.read_if_there(folder.conversion)
    if conversion is None:
        return []
    warnings = list(conversion.warnings)
    selection = records.Selection.read_if_there(folder.selection)
    problems = selection.problems if selection is not None else ()
    if problems:
        first = f"{problems[0].file}: {problems[0].reason}"
        warnings.append(f"{len(problems)} files take no part; the first: {first}")
    return warnings
