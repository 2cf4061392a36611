"""The steps of one study, folder to folder: select, convert, report, explain, encode.

Each step reads what the one before it wrote, and writes its own output whole or not at all, so that it may run again.
This is the only place where `dicom_io` and `braingemma` meet.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from braingemma.checkpoint.weights import WeightsInfo, describe_weights
from braingemma.errors import BrainGemmaError, CheckpointError, ExplainError, GenerationError
from braingemma.explain.grounding import LIKELY, LesionEstimate, disagreements, estimate_lesion
from braingemma.explain.run import run_interpretability
from braingemma.findings.text import findings_from_text
from braingemma.findings.vocabulary import Finding
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume.preprocess import PreparedVolume, prepare_volume
from daemon.config.sections import Settings
from daemon.errors import Permanent, Rejected
from daemon.guard_rails import check_picture
from daemon.jobs.folder import JobFolder, make_private, read_json, write_json
from daemon.jobs.report import INTENDED_USE, read_report, write_report
from daemon.pipeline.corrections import Correction
from dicom_io.content.report import FindingRecord, ModelIdentity, ReportContent
from dicom_io.deidentify import Deidentifier, load_key, rewrite_file, scrub
from dicom_io.errors import DeidentificationError, DicomIoError, PackError
from dicom_io.pack.encode import MANIFEST, PackOptions, encode_pack, load_pack, reports_of
from dicom_io.pack.rejection import encode_rejection, withdrawn
from dicom_io.select.selection import SelectionRules, Verdict, rank
from dicom_io.series.group import FileProblem, Series, scan_folder
from dicom_io.volume.geometry import SeriesGeometry
from dicom_io.volume.nifti import convert_series

Progress = Callable[[int, int, str], None]

MANUFACTURER = "BrainGemma3D for PACS (open source)"
EXPLAINED = ("method", "samples", "segments", "seed", "explained", "r2", "faithfulness", "grounding")
"""What `report.json` takes over from `lime_weights.json`."""


class Steps:
    """The steps in one process; the model is loaded once and kept.

    Errors of the two lower rooms become the daemon's: what the input is to blame for is `Rejected`, what the
    installation is to blame for is `Permanent`.
    """

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.progress: Progress = progress or (lambda _done, _total, _text: None)
        self._model: BrainGemma3D | None = None
        self._weights: WeightsInfo | None = None
        if settings.model.threads:
            torch.set_num_threads(settings.model.threads)

    def run(self, step: str, folder: JobFolder) -> None:
        """Run one step by name.

        Raises:
            Rejected: the input is to blame.
            Permanent: the installation is to blame.
        """
        steps: dict[str, Callable[[JobFolder], None]] = {
            "select": self.select,
            "convert": self.convert,
            "import": self.import_nifti,
            "report": self.report,
            "explain": self.explain,
            "encode": self.encode,
        }
        try:
            steps[step](folder)
        except (CheckpointError, GenerationError, ExplainError, PackError, DeidentificationError) as error:
            raise Permanent(f"{step}: {error}") from error
        except (BrainGemmaError, DicomIoError) as error:
            raise Rejected(str(error)) from error

    # ------------------------------------------------------------------ DICOM in

    def select(self, folder: JobFolder) -> None:
        """Judge every series of `input/`, and choose the FLAIR that is reported.

        Raises:
            Rejected: no series is a brain FLAIR; `selection.json` says why for each.
        """
        scan = scan_folder(folder.input)
        rules = self.settings.selection
        ranked = rank(scan.series, SelectionRules(include=rules.include, exclude=rules.exclude))
        accepted = [series for series, verdict in ranked if verdict.accepted]
        write_json(
            folder.selection,
            {
                "chosen": accepted[0].series_uid if accepted else None,
                "further": [series.series_uid for series in accepted[1:]],
                "series": [
                    {
                        "series_uid": verdict.series_uid,
                        "verdict": "accepted" if verdict.accepted else "refused",
                        "reasons": [reason.line for reason in verdict.reasons],
                    }
                    for _, verdict in ranked
                ],
                "problems": [{"file": str(p.path.name), "reason": p.reason} for p in scan.problems],
            },
        )
        if not accepted:
            raise Rejected(_why_none(ranked, scan.problems, folder.input))
        _check_one_patient(accepted[0], scan.series)

    def convert(self, folder: JobFolder) -> None:
        """The chosen series to `volume_ras.nii.gz` and `geometry.json`."""
        conversion = convert_series(self._chosen(folder), folder.volume)
        conversion.geometry.save(folder.geometry)
        write_json(folder.conversion, {"warnings": list(conversion.warnings)})

    def import_nifti(self, folder: JobFolder) -> None:
        """The NIfTI file `source` to `volume_ras.nii.gz`: same voxels, axes in RAS order by the header alone."""
        path = folder.input
        prepare_volume(path)  # says what is wrong with the file, in the words that the report step would use
        temporary = folder.root / ".volume_ras.part.nii.gz"
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), temporary)
        temporary.rename(folder.volume)
        write_json(folder.source_facts, {"file": path.name})

    # ------------------------------------------------------------------ the model

    def report(self, folder: JobFolder) -> None:
        """The report with its findings, warnings and provenance."""
        self.progress(0, 1, "checking the picture")
        checks = check_picture(folder.volume, self.weights, self.settings.checks)
        self.progress(0, 1, "loading the model")
        model = self.model
        prepared = prepare_volume(folder.volume, model.config)
        volume = prepared.tensor
        limit = self.settings.model.max_new_tokens
        generated = model.generate(
            volume, max_new_tokens=limit, progress=lambda done: self.progress(done, limit, "writing, token")
        )
        probabilities = model.finding_probabilities(volume)
        findings = _with_confidence(findings_from_text(generated.text), probabilities)
        estimate = self._lesion_estimate(prepared)
        warnings = [
            *_conversion_warnings(folder),
            *prepared.warnings,
            *(check.detail for check in checks if check.passed is False),
            *_disagreements(findings, probabilities),
            *(disagreements(findings, estimate) if estimate is not None else ()),
        ]
        write_report(
            folder,
            {
                "report": generated.text,
                "findings": [finding.to_json() for finding in findings],
                "lesion_estimate": None if estimate is None else estimate.to_json(),
                "input": {**self._input_facts(folder, prepared), "checks": [check.to_json() for check in checks]},
                "model": self._model_facts(),
                "explain": None,
                "warnings": warnings,
                "banner": self.weights.banner,
                "intended_use": INTENDED_USE,
            },
        )

    def _lesion_estimate(self, prepared: PreparedVolume) -> LesionEstimate | None:
        """Size and place of the lesion by the grounding map; None where the weights have none."""
        patches = self.model.ground(prepared.tensor.to(self.model.compute_device))
        return None if patches is None else estimate_lesion(patches[0].float().cpu().numpy(), prepared)

    def explain(self, folder: JobFolder) -> None:
        """The saliency volume and its pictures, beside the report."""
        report = read_report(folder)
        settings = self.settings.explain
        temporary = make_private(folder.root / ".explain.part")
        run_interpretability(
            model=self.model,
            mri_path=folder.volume,
            report=report["report"],
            output_dir=temporary,
            lime_samples=settings.samples,
            n_segments=settings.segments,
            seed=settings.seed,
            method=settings.method,
            replacement=settings.replacement,
            target=settings.target,
            batch_size=settings.batch_size or None,
            banner=self.weights.banner,
            progress=lambda done, total: self.progress(done, total, "explaining, volume"),
        )
        shutil.rmtree(folder.explain, ignore_errors=True)
        temporary.rename(folder.explain)
        weights = read_json(folder.explain / "lime_weights.json")
        facts = {key: weights[key] for key in EXPLAINED}
        facts["saliency_sha256"] = voxel_digest(nibabel.load(folder.explain / "saliency.nii.gz"))
        write_report(folder, {**report, "explain": facts, "warnings": [*report["warnings"], *weights["warnings"]]})

    @property
    def model(self) -> BrainGemma3D:
        """The model, loaded when it is first needed."""
        if self._model is None:
            wanted = self.settings.model
            self._model = BrainGemma3D.from_pretrained(
                wanted.weights, device=wanted.device, quantization=wanted.quantization
            )
            self._model.eval()
        return self._model

    @property
    def weights(self) -> WeightsInfo:
        """Name, digest and limits of the weights."""
        if self._weights is None:
            self._weights = describe_weights(self.settings.model.weights)
        return self._weights

    # ------------------------------------------------------------------ DICOM out

    def encode(self, folder: JobFolder) -> None:
        """The result pack; a pack that breaks a rule never gets as far as delivery."""
        report = self._with_correction(folder)
        results = self.settings.results
        sources, geometry = self._sources(folder)
        earlier = _replaced_results(folder)
        replaced = load_pack(earlier) if earlier else None
        identity = _identity(report, self.settings, Correction.load(folder.identity))
        if replaced is not None and replaced.identity == identity and read_json(folder.arrival).get("anew"):
            raise Rejected("reported anew, these weights and settings give the same results: nothing is replaced")
        saliency, grounding = folder.explain / "saliency.nii.gz", folder.explain / "grounding.nii.gz"
        pack = encode_pack(
            source_files=sources,
            geometry=geometry,
            volume_path=folder.volume,
            saliency_path=saliency if saliency.exists() else None,
            grounding_path=grounding if grounding.exists() else None,
            content=self._content(folder, report),
            options=PackOptions(sr=results.sr, sc=results.sc, pm=results.pm, seg=results.seg, tid1500=results.tid1500),
            identity=identity,
            out=folder.dicom,
            # A report under another identity is no predecessor that may be named (de-identified, or not any more).
            predecessors=reports_of(replaced) if replaced and replaced.study_uid == geometry.study_uid else (),
            earlier=earlier,
        )
        wanted = any(destination.reject_replaced for destination in self.settings.destinations)
        if wanted and replaced is not None and withdrawn(replaced, by=pack):
            encode_rejection(replaced, folder.rejection)

    def _sources(self, folder: JobFolder) -> tuple[list[Path], SeriesGeometry]:
        """The instances that results are made from, and their geometry.

        Where the patient was corrected, or results are to be de-identified, these are changed headers: encoders then
        never see the old identity, so that none can slip through.
        """
        files = [Path(file) for file in self._chosen(folder).files]
        geometry = SeriesGeometry.load(folder.geometry)
        correction, wanted = Correction.load(folder.identity), self.settings.results.deidentify
        if correction is None and not wanted:
            return files, geometry
        deidentifier = Deidentifier(load_key(self.settings.pseudonym_key)) if wanted else None
        shutil.rmtree(folder.headers, ignore_errors=True)
        targets = [make_private(folder.headers) / f"{number:06d}.dcm" for number, _ in enumerate(files, start=1)]
        for source, target in zip(files, targets, strict=True):
            rewrite_file(
                source, target, *([correction.apply] if correction else []),
                *([deidentifier.deidentify] if deidentifier else []), pixels=False,
            )  # fmt: skip
        return targets, geometry if deidentifier is None else deidentifier.geometry(geometry)

    def _with_correction(self, folder: JobFolder) -> dict[str, Any]:
        """The report, with a word about a correction of the patient where there was one."""
        report, correction = read_report(folder), Correction.load(folder.identity)
        if correction is None:
            return report
        said = f"The patient's identity ({correction.named}) was corrected after the images came."
        if said not in report["warnings"]:
            report = {**report, "warnings": [*report["warnings"], said]}
            write_report(folder, report)
        return report

    def _content(self, folder: JobFolder, report: dict[str, Any]) -> ReportContent:
        """What the results say; names of files, which may be a patient's, stand in no de-identified result."""
        if self.settings.results.deidentify:
            names = [path.name for path in folder.input.rglob("*")]
            report = {**report, "warnings": [scrub(warning, names) for warning in report["warnings"]]}
        return _content(report, self.weights)

    # ------------------------------------------------------------------ helpers

    def _chosen(self, folder: JobFolder) -> Series:
        """The series that `select` chose, read again from its files."""
        chosen = read_json(folder.selection)["chosen"]
        for series in scan_folder(folder.input).series:
            if series.series_uid == chosen:
                return series
        raise Permanent(f"{folder.input}: the chosen series {chosen} is no longer there")

    def _input_facts(self, folder: JobFolder, prepared: PreparedVolume) -> dict[str, Any]:
        image = nibabel.load(folder.volume)
        chosen = read_json(folder.selection)["chosen"] if folder.selection.exists() else None
        source = read_json(folder.source_facts) if folder.source_facts.exists() else {}
        return {
            "series_uid": chosen,
            "file": source.get("file"),
            "shape": [int(n) for n in image.shape],
            "spacing_mm": [round(float(s), 4) for s in image.header.get_zooms()[:3]],
            "orientation": "".join(nibabel.aff2axcodes(image.affine)),
            "sha256": voxel_digest(image),
            "preprocessing": prepared.facts(),
        }

    def _model_facts(self) -> dict[str, Any]:
        model, info = self.model, self.weights
        return {
            "name": info.name,
            "version": info.version,
            "weights_sha256": info.sha256,
            "format": info.format,
            "prompt": model.config.prompt,
            "generation": {"decoding": "greedy", "max_new_tokens": self.settings.model.max_new_tokens},
            "device": model.compute_device.type,
            "quantization": model.quantization,
        }


def voxel_digest(image: nibabel.Nifti1Image) -> str:
    """sha256 of the voxels and the affine: the same for the same picture, however the file was compressed."""
    digest = hashlib.sha256(np.ascontiguousarray(image.affine, dtype=np.float64).tobytes())
    digest.update(np.ascontiguousarray(np.asanyarray(image.dataobj)).tobytes())
    return digest.hexdigest()


def _check_one_patient(chosen: Series, all_series: Sequence[Series]) -> None:
    """Refuse a study whose series name different patients: nobody here can know which of them it is.

    Raises:
        Rejected: it does.
    """
    found = {i for s in all_series if s.study_uid == chosen.study_uid for i in s.distinct("PatientID")}
    if len(found) > 1:
        shown = ", ".join(repr(i) for i in sorted(found))
        raise Rejected(f"study {chosen.study_uid}: expected one PatientID, got {len(found)}: {shown}")


def _why_none(ranked: Sequence[tuple[Series, Verdict]], problems: Sequence[FileProblem], folder: Path) -> str:
    if not ranked:
        files = f"; {len(problems)} files could not be read: {problems[0].reason}" if problems else ""
        return f"expected DICOM instances of at least one image series in {folder}, found none{files}"
    refusals = []
    for series, verdict in ranked:
        failed = "; ".join(f"{reason.rule}: {reason.detail}" for reason in verdict.refusals)
        refusals.append(f"series {series.series_uid}: {failed}")
    return f"no brain FLAIR among {len(ranked)} series: " + " | ".join(refusals)


def _with_confidence(
    findings: Sequence[Finding], probabilities: dict[str, Any] | list[dict[str, Any]] | None
) -> list[Finding]:
    """Each finding with the findings head's probability that it is as the text says."""
    if not isinstance(probabilities, dict):
        return list(findings)
    result = []
    for finding in findings:
        present = float(probabilities[finding.finding]["presence"])
        confidence = {"present": present, "absent": 1 - present}.get(finding.presence)
        result.append(replace(finding, confidence=None if confidence is None else round(confidence, 4)))
    return result


def _disagreements(
    findings: Sequence[Finding], probabilities: dict[str, Any] | list[dict[str, Any]] | None
) -> list[str]:
    """Where text and findings head differ on presence, or on the side of what both call present."""
    warnings = [
        f"The text calls {finding.finding.replace('_', ' ')} {finding.presence}, but the image classifier gives that "
        f"only {finding.confidence:.0%}: read with care."
        for finding in findings
        if finding.confidence is not None and finding.confidence < 0.5
    ]
    for finding in findings:
        other = {"left": "right", "right": "left"}.get(finding.laterality or "")
        if not isinstance(probabilities, dict) or other is None or finding.presence != "present":
            continue
        known = probabilities[finding.finding]
        if known["presence"] >= 0.5 and known[other] >= 0.5 > known[finding.laterality]:
            warnings.append(
                f"The text places {finding.finding.replace('_', ' ')} on the {finding.laterality}, but the image "
                f"classifier on the {other} ({known[other]:.0%}): check the side."
            )
    return warnings


def _conversion_warnings(folder: JobFolder) -> list[str]:
    """What was noticed on the way from DICOM: by the conversion, and files that take no part."""
    if not folder.conversion.exists():
        return []
    warnings = list(read_json(folder.conversion)["warnings"])
    problems = read_json(folder.selection)["problems"]
    if problems:
        first = f"{problems[0]['file']}: {problems[0]['reason']}"
        warnings.append(f"{len(problems)} files could not be read and take no part; the first: {first}")
    return warnings


def _content(report: dict[str, Any], weights: WeightsInfo) -> ReportContent:
    estimate = report.get("lesion_estimate")
    facts = {k: v for k, v in report["model"].items() if k not in ("name", "version", "weights_sha256")}
    return ReportContent(
        report_text=report["report"],
        findings=tuple(
            FindingRecord(f["finding"], f["presence"], f["laterality"], tuple(f["sites"]), f["confidence"])
            for f in report["findings"]
        ),
        warnings=tuple(report["warnings"]),
        lesion_volume_ml=estimate["volume_ml"] if estimate and estimate["peak"] >= LIKELY else None,
        banner=report["banner"],
        intended_use=report["intended_use"],
        model=ModelIdentity(
            name=weights.name,
            version=weights.version,
            weights_sha256=weights.sha256,
            manufacturer=MANUFACTURER,
            parameters={k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in facts.items()},
        ),
        explain=report["explain"],
    )


def _replaced_results(folder: JobFolder) -> Path | None:
    """Results that this job's replace: of the latest of the jobs that it supersedes that came as far as results."""
    while folder.arrival.exists():
        supersedes = read_json(folder.arrival)["supersedes"]
        if supersedes is None:
            return None
        folder = JobFolder(folder.root.parent / supersedes)
        if (folder.dicom / MANIFEST).exists():
            return folder.dicom
    return None


def _identity(report: dict[str, Any], settings: Settings, correction: Correction | None) -> str:
    """sha256 over everything that affects the content of the results: other inputs, other UIDs."""
    what = {
        "input": report["input"],
        "report": report["report"],
        "findings": report["findings"],
        "model": report["model"],
        "explain": [report["explain"], settings.explain.model_dump()],
        "results": settings.results.model_dump(mode="json", exclude={"deidentify_key"}),
    }
    if correction is not None:
        what["patient"] = dict(correction.values)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
