"""The phases by configuration: one process or two, killed or not, in parts or at once: the same curve and weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from braingemma.configuration import BrainGemmaConfig
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume.brain import BrainMask
from braingemma.volume.preprocess import prepare_image
from tests.braingemma.tiny_models import tiny_model
from tests.training.run_support import (
    free_port,
    losses,
    processes,
    tiny_settings,
    train_as_rank,
    train_slowly,
    write_config,
)
from training.data.cases import Cases
from training.data.phantom_cases import prepare_case, training_cases, training_phantom
from training.data.records import Record, write_manifest
from training.errors import DataError, ResumeError, SettingsError
from training.phantoms.phantom import make_phantom, write_phantom
from training.phases.bases import demo_config
from training.phases.language_pretraining import pretrain_language
from training.phases.run import start_model, train_phases
from training.phases.run_folder import RunFolder
from training.phases.weights import TrainingData, describe
from training.settings import LanguageSettings, load_settings, parse_settings

ALL = ["phase1", "phase2a", "phase2b"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cases on disk, listed in a manifest with masks and splits."""
    folder = tmp_path_factory.mktemp("data")
    records = []
    for seed in range(10):
        phantom = make_phantom(seed, spacing=5.0, stripped=True)
        write_phantom(folder / str(seed), phantom)
        split = "train" if seed < 8 else "val"
        files = folder / str(seed) / "flair.nii.gz", folder / str(seed) / "lesion.nii.gz"
        records.append(Record(str(seed), files[0], str(phantom.truth["report"]), f"p{seed}", files[1], split))
    write_manifest(records, folder / "manifest.jsonl")
    return write_config(folder, folder / "manifest.jsonl")


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process that nobody disturbs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_phases(tiny_settings(config), out, ALL)
    return out


@pytest.fixture
def prepared(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A new run folder with the cases that are prepared already."""
    out = tmp_path / "run"
    shutil.copytree(whole / "cases", out / "cases")
    return out


def test_a_run_keeps_what_it_was_made_of(whole: Path, config: Path) -> None:
    facts = json.loads((whole / "run.json").read_text())
    assert facts["settings"]["phases"][0]["name"] == "phase1"
    assert len(facts["data_sha256"]) == 64
    assert facts["git_revision"]
    assert [facts["phases"][name]["steps"] for name in ALL] == [5, 3, 3]
    assert facts["phases"]["phase2b"]["settings"]["trainable"] == ["projector", "lora"]
    assert facts["phases"]["phase2b"]["settings"]["precision"] == "no"
    stated = json.loads((whole / "weights" / "config.json").read_text())
    assert (stated["synthetic_only"], stated["banner"]) == (False, None)
    assert stated["training_domain"] == "8 cases of manifest.jsonl"
    assert stated["grounding_head"]
    assert stated["findings_head"]
    for phase in ALL:
        assert (whole / f"{phase}.png").read_bytes().startswith(b"\x89PNG")
        assert all(np.isfinite(losses(whole, phase)))


def test_saved_weights_are_those_that_were_trained(whole: Path, config: Path) -> None:
    saved = BrainGemma3D.from_pretrained(whole / "weights", quantization="none", device="cpu", dtype="float32")
    after = dict(saved.named_parameters())
    state = torch.load(whole / "phase2b.state.pt", weights_only=False)["parameters"]
    kept = {n.removeprefix("model."): v for n, v in state.items()}
    assert any("lora_B" in name for name in kept)
    for name, value in kept.items():
        assert torch.equal(after[name], value), name
    vision = torch.load(whole / "phase1.state.pt", weights_only=False)["parameters"]
    for name in ("model.vision.patch_embedding.weight", "model.resampler.latents", "model.grounding_head.mlp.0.weight"):
        assert torch.equal(after[name.removeprefix("model.")], vision[name]), name


def test_phases_one_by_one_give_what_all_at_once_give(whole: Path, prepared: Path, config: Path) -> None:
    settings = tiny_settings(config)
    with pytest.raises(ResumeError, match="phase1 stands at step 0 of 5"):
        train_phases(settings, prepared, ["phase2a"])
    said: list[str] = []
    for name in ALL:
        train_phases(settings, prepared, [name], say=said.append)
    for name in ALL:
        assert losses(prepared, name) == losses(whole, name)
    assert any("phase2b" in text and "lora" in text and "vision" not in text for text in said)


def test_a_phase_may_leave_the_mean_of_its_beginning_and_its_end(whole: Path, prepared: Path, config: Path) -> None:
    settings = tiny_settings(config)
    first = replace(settings.phase("phase1"), start_share=0.5)
    shared = replace(settings, phases=(first, *settings.phases[1:]))
    name = "vision.patch_embedding.weight"
    begun = dict(start_model(settings, torch.device("cpu")).named_parameters())[name]
    ended = torch.load(whole / "phase1.state.pt", weights_only=False)["parameters"][f"model.{name}"]
    for _ in ("trained", "taken over"):
        model = train_phases(shared, prepared, ["phase1"])
        left = dict(model.named_parameters())[name]
        torch.testing.assert_close(left, (begun + ended) / 2)
    model = train_phases(shared, prepared, ["phase2a"])
    assert torch.equal(dict(model.named_parameters())[name], left), "a later phase goes on from the mean"


def test_a_folder_of_other_data_is_refused(whole: Path, prepared: Path, config: Path, tmp_path: Path) -> None:
    manifest = [json.loads(line) for line in Path(tiny_settings(config).data.manifest).read_text().splitlines()]
    manifest[0]["report"] = "No lesion area is seen."
    other = tmp_path / "manifest.jsonl"
    other.write_text("\n".join(map(json.dumps, manifest)))
    shutil.copy(whole / "run.json", prepared / "run.json")
    with pytest.raises(ResumeError, match="differs in the training data"):
        train_phases(tiny_settings(write_config(tmp_path, other)), prepared, ["phase1"])


def test_settings_that_changed_between_phases_are_named(whole: Path, tmp_path: Path, config: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("phase2b*", "weights"))
    settings = tiny_settings(config)
    faster = replace(settings.phase("phase1"), learning_rate=0.5)
    said: list[str] = []
    train_phases(replace(settings, phases=(faster, *settings.phases[1:])), out, ["phase2b"], say=said.append)
    assert any("phase1 is finished" in text and "learning_rate = 0.001, now 0.5" in text for text in said)
    assert losses(out, "phase2b") == losses(whole, "phase2b")
    assert json.loads((out / "run.json").read_text())["phases"]["phase1"]["settings"]["learning_rate"] == 0.001
    (out / "phase2b.state.pt").unlink()
    other = replace(settings.phase("phase2b"), batch=2)
    with pytest.raises(ResumeError, match="phase2b was begun with other settings: batch = 4, now 2"):
        train_phases(replace(settings, phases=(*settings.phases[:2], other)), out, ["phase2b"])


def test_two_trainings_in_one_folder_are_refused(config: Path, tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path).locked(),
        pytest.raises(ResumeError, match="another training works in this folder"),
    ):
        train_phases(tiny_settings(config), tmp_path, ALL)


def test_what_no_phase_trained_is_not_saved(prepared: Path, config: Path) -> None:
    """An untrained lesion map would report a lesion of chance."""
    settings = tiny_settings(config)
    blind = replace(settings.phase("phase1"), trainable=("vision", "resampler", "projector", "findings", "auxiliary"))
    later = replace(settings.phase("phase2a"), trainable=("projector", "grounding"))
    said: list[str] = []
    train_phases(replace(settings, phases=(blind, later)), prepared, ["phase1"], say=said.append)
    stated = json.loads((prepared / "weights" / "config.json").read_text())
    assert (stated["grounding_head"], stated["findings_head"]) == (False, True)
    assert any("no phase trained it: head for grounding" in text for text in said)
    loaded = BrainGemma3D.from_pretrained(prepared / "weights", quantization="none", device="cpu", dtype="float32")
    assert loaded.grounding_head is None


def test_weights_say_what_they_were_trained_on() -> None:
    real = Cases(torch.zeros(0), torch.zeros(0), torch.zeros(0), (), (), synthetic=False)
    drawn = replace(real, synthetic=True)
    model = tiny_model()
    for data, begun, synthetic, domain in (
        (TrainingData(drawn, drawn, "phantoms"), False, True, "phantoms"),
        (TrainingData(drawn, drawn, "phantoms"), True, True, "phantoms"),
        (TrainingData(real, real, "8 scans"), True, False, "phantoms; then 8 scans"),
        (TrainingData(drawn, drawn, "phantoms"), True, False, "phantoms; then 8 scans; then phantoms"),
        (TrainingData(drawn, drawn, "phantoms"), True, False, "phantoms; then 8 scans; then phantoms"),
    ):
        describe(model, data, begun_from_weights=begun)
        assert (model.config.synthetic_only, model.config.training_domain) == (synthetic, domain)
        assert (model.config.banner is not None) == synthetic


@pytest.mark.timeout(900)
def test_two_processes_give_the_curve_of_one(whole: Path, prepared: Path, config: Path) -> None:
    """Two processes on gloo, as `accelerate launch` starts them: contrast, findings and words over both halves."""
    context, port = processes(), free_port()
    ranks = [context.Process(target=train_as_rank, args=(rank, 2, port, config, prepared)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=800)
    assert [process.exitcode for process in ranks] == [0, 0]
    for name in ALL:
        assert losses(prepared, name) == pytest.approx(losses(whole, name), rel=2e-5)


@pytest.mark.timeout(900)
def test_a_run_killed_by_sigkill_goes_on_to_the_same_curve(whole: Path, prepared: Path, config: Path) -> None:
    process = processes().Process(target=train_slowly, args=(config, prepared))
    process.start()
    deadline = time.monotonic() + 800
    while not (prepared / "third").exists() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.1)
    assert (prepared / "third").exists()
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert len(losses(prepared, "phase1")) == 2  # saved after the second step, killed after the third
    train_phases(tiny_settings(config), prepared, ["phase1"])
    # A loss of 14 in float32 has steps of 1e-6: sums over other threads may end one step apart.
    assert losses(prepared, "phase1") == pytest.approx(losses(whole, "phase1"), rel=1e-6, abs=1e-6)


class Killed(Exception):
    """Stands for SIGKILL between two steps."""


def test_a_run_killed_before_it_saved_draws_the_same_again(prepared: Path, config: Path, tmp_path: Path) -> None:
    """What phase 1 adds for itself is drawn after the language stage, which a second start does not repeat."""
    settings = replace(tiny_settings(config), language=LanguageSettings(steps=2, batch=2, warmup=1))
    shutil.copytree(prepared, tmp_path / "whole")
    train_phases(settings, tmp_path / "whole", ["phase1"])

    def kill(phase: str, _step: int, _total: int, _losses: dict[str, float]) -> None:
        if phase == "phase1":
            raise Killed

    with pytest.raises(Killed):
        train_phases(settings, prepared, ["phase1"], kill)
    assert not (prepared / "phase1.state.pt").exists()
    train_phases(settings, prepared, ["phase1"])
    assert losses(prepared, "phase1") == losses(tmp_path / "whole", "phase1")


def test_a_language_model_from_nothing_learns_although_the_model_starts_frozen(config: Path) -> None:
    settings = replace(tiny_settings(config), language=LanguageSettings(steps=2, batch=2, warmup=1))
    model = start_model(settings, torch.device("cpu"))
    before = {name: p.clone() for name, p in model.language_model.named_parameters()}
    pretrain_language(model, settings.language)
    after = dict(model.language_model.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    assert not any(p.requires_grad for p in after.values()), "the phases find it frozen"


def test_a_run_goes_on_from_the_run_that_start_names(whole: Path, config: Path, tmp_path: Path) -> None:
    """The first run's weights are made where they are not there, and its sizes are kept."""
    second = replace(
        load_settings(config),
        start=str(config),
        model={"version": "2", "volume": {"percentiles": [0.5, 99.9]}},
        phases=(replace(load_settings(config).phase("phase1"), steps=2),),
    )
    out = tmp_path / "run"
    model = train_phases(second, out)
    assert losses(out / "start", "phase2b") == losses(whole, "phase2b"), "all of the first run comes first"
    first = BrainGemma3D.from_pretrained(out / "start" / "weights", device="cpu")
    assert (model.config.name, model.config.version) == ("tiny", "2")
    assert model.config.volume_settings == replace(first.config.volume_settings, percentiles=(0.5, 99.9))
    saved = BrainGemma3D.from_pretrained(out / "weights", device="cpu").config
    assert saved.volume_settings == model.config.volume_settings
    assert len(losses(out, "phase1")) == 2
    (out / "start" / "phase2b.csv").unlink()
    train_phases(second, out)
    assert not (out / "start" / "phase2b.csv").exists(), "weights that are there are taken as they are"


def test_a_start_keeps_its_model() -> None:
    plain = {"start": "demo-plain", "data": {"kind": "phantoms"}}
    assert parse_settings({**plain, "model": {"version": "6"}}, "x").start == "demo-plain"
    with pytest.raises(SettingsError, match=r"model\.lora_rank: the model of start is kept"):
        parse_settings({**plain, "model": {"lora_rank": 8}}, "x")
    with pytest.raises(SettingsError, match="give either start or weights, got both"):
        parse_settings({**plain, "weights": "demo"}, "x")


def test_training_phantoms_are_cut_out_by_the_mask_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the extraction that serving takes, which costs seconds a volume."""
    monkeypatch.setattr("braingemma.volume.preprocess.find_brain", lambda *_: pytest.fail("no extraction is asked for"))
    config = demo_config(load_settings("demo-plain"))
    with_skull = next(seed for seed in range(20) if np.random.default_rng([seed, 98]).random() > 0.5)
    for difficulty in ("plain", "hard"):
        phantom = training_phantom(with_skull, difficulty=difficulty)
        brain = BrainMask.of(np.asarray(phantom.extracted), phantom.volume.header.get_zooms()[:3])
        assert 700 < brain.volume_ml < 2600
        prepared = prepare_image(phantom.volume, config, brain=brain)
        assert torch.equal(prepare_case(phantom, config).volumes, prepared.tensor.half())


def test_phantoms_of_a_kind_come_after_the_others_and_are_never_validated(tmp_path: Path) -> None:
    settings = load_settings("demo-plain")
    data = replace(settings.data, count=1, validation=1, bilateral=2, plaques=2)
    train, validation = training_cases(data, demo_config(settings), str(tmp_path))
    lesions = [case[0] for case in train.findings]
    assert [lesion.laterality for lesion in lesions[1:3]] == ["bilateral", "bilateral"]
    assert [lesion.presence for lesion in lesions[3:]] == ["absent", "absent"]
    held_out = prepare_case(training_phantom(data.seed + 1), demo_config(settings)).volumes[0]
    assert torch.equal(validation.volumes[0], held_out)
    assert not any(torch.equal(volume, held_out) for volume in train.volumes)


def drawn_and_prepared() -> str:
    """Digests of one case, with one thread and with two."""
    config = BrainGemmaConfig(vision_config={"hidden_size": 64}, volume={"grid": [32, 60, 48], "crop": "brain"})
    digests = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            phantom = training_phantom(200003)
            arrays = np.asarray(phantom.volume.dataobj), prepare_case(phantom, config).volumes.numpy()
            digests.append(" ".join(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays))
    return "\n".join(digests)


def test_a_case_is_the_same_whatever_the_threads_and_the_kernels() -> None:
    """OpenBLAS's kernels for Haswell sum in another order with two threads than with one."""
    code = "from tests.training.phases.test_run import drawn_and_prepared; print(drawn_and_prepared())"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "2"},
        check=True,
        capture_output=True,
        text=True,
    )
    one, two = run.stdout.split("\n")[:2]
    assert one == two
    assert run.stdout.strip() == drawn_and_prepared()


def test_dense_losses_need_masks(config: Path, tmp_path: Path) -> None:
    entries = [json.loads(line) for line in Path(tiny_settings(config).data.manifest).read_text().splitlines()]
    without = tmp_path / "manifest.jsonl"
    without.write_text("\n".join(json.dumps({k: v for k, v in e.items() if k != "mask"}) for e in entries))
    with pytest.raises(DataError, match="needs a mask for every lesion"):
        train_phases(tiny_settings(write_config(tmp_path, without)), tmp_path / "run", ["phase1"])


def test_steps_that_do_not_divide_are_refused(config: Path, prepared: Path) -> None:
    text = config.read_text().replace("steps = 5\nbatch = 4", "steps = 5\nbatch = 12\naccumulate = 3")
    other = config.parent / "uneven.toml"
    other.write_text(text)
    with pytest.raises(SettingsError, match="8 cases a step do not fall into 3 equal parts"):
        train_phases(load_settings(other), prepared, ["phase1"])


def test_the_bundled_configurations_hold_the_cards_values() -> None:
    for name, phases in (("phase1", 1), ("phase2a", 2), ("phase2b", 3), ("card", 3)):
        settings = load_settings(name)
        assert [p.name for p in settings.phases] == ALL[:phases]
        assert all(p.epochs == 100 for p in settings.phases)
    card = load_settings("card")
    assert card.model["lora_rank"] == 4
    assert card.model["text"] == "google/medgemma-1.5-4b-it"
    assert "vision" in card.phase("phase1").trainable
    assert not {"vision", "language", "lora"} & set(card.phase("phase2a").trainable)
    assert "lora" in card.phase("phase2b").trainable
