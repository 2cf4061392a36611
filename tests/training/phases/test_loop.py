"""The loop: what is frozen stays, gradients at batch 1, the same curve after a kill."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from braingemma.model.braingemma3d import BrainGemma3D
from training.data.batches import TokenSource, VolumeSource
from training.data.cases import Cases
from training.data.patches import focus
from training.data.phantom_cases import prepare_case
from training.data.targets import mirrored_target
from training.errors import ResumeError, SettingsError
from training.phantoms.phantom import make_phantom
from training.phases import plan
from training.phases.bases import new_model
from training.phases.four_bit import round_to_nf4
from training.phases.loop import Outcome, Trainer, indices, make_optimisers
from training.phases.losses import LOSSES, infonce_loss, pairwise_sigmoid_loss, register_loss
from training.phases.objectives import make_phase
from training.phases.run import PhaseRunner, make_accelerator, start_model, validator
from training.phases.run_folder import RunFolder
from training.phases.weights import TrainingData
from training.settings import PhaseSettings, TrainingSettings, load_settings, parse_settings

PHASE1 = PhaseSettings(
    name="phase1",
    trainable=("vision", "resampler", "projector", "grounding", "findings", "auxiliary"),
    steps=4,
    batch=2,
    warmup=1,
    validate_every=2,
)


FOCUSED = dataclasses.replace(PHASE1, matrix_rate=0.02, focus_patches=20, focus_steps=3)
ODD_GRID = {"grid": [18, 36, 28], "brain_extraction": "none"}


@pytest.fixture(scope="module")
def settings() -> TrainingSettings:
    small = load_settings("demo-plain")
    model = {**small.model, "resampler_layers": 1}
    model["volume"] = {"grid": [16, 32, 32], "crop": "brain", "brain_extraction": "none"}
    model["vision"] = {**small.model["vision"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model["text"] = {**small.model["text"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model["text"] |= {"layer_types": ["full_attention"], "head_dim": 16, "query_pre_attn_scalar": 16}
    return dataclasses.replace(small, model=model)


@pytest.fixture
def model(settings: TrainingSettings) -> BrainGemma3D:
    return new_model(settings)


@pytest.fixture(scope="module")
def cases(settings: TrainingSettings) -> Cases:
    config = new_model(settings).config
    return Cases.join([prepare_case(make_phantom(seed, spacing=5.0, stripped=True), config) for seed in range(4)])


def test_phase1_learns_on_a_grid_that_the_patch_does_not_divide(settings: TrainingSettings, tmp_path: Path) -> None:
    """The card's grid of 128 is no multiple of its patch of 14: masks grow with the volume."""
    odd = dataclasses.replace(settings, model={**settings.model, "volume": {**ODD_GRID, "crop": "brain"}})
    model = new_model(odd)
    cases = Cases.join([prepare_case(make_phantom(5, spacing=5.0, stripped=True, with_lesion=True), model.config)])
    outcome = run_phase(model, dataclasses.replace(PHASE1, batch=1), cases, tmp_path)
    assert outcome.steps == 4
    assert all(step["grounding"] > 0 for step in outcome.history)
    found = model.ground(cases.volumes[:].float())
    assert found is not None
    assert found.shape == (1, 5, 6, 5)


def run_phase(model: BrainGemma3D, phase: PhaseSettings, cases: Cases, folder: Path) -> Outcome:
    accelerator = make_accelerator(TrainingSettings())
    data = TrainingData(cases, cases, "phantoms")
    return PhaseRunner(model, TrainingSettings(), data, RunFolder(folder), accelerator).train(phase)


def curve(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.train().history]


def trainer(model: BrainGemma3D, cases: Cases, folder: Path, settings: PhaseSettings = PHASE1) -> Trainer:
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    return Trainer(make_phase(model, settings), VolumeSource(cases, model, settings), run)


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("phase1", PHASE1.trainable),
        ("phase2a", ("projector",)),
        ("phase2a", ("projector", "resampler", "findings")),
        ("phase2b", ("projector", "lora")),
    ],
)
def test_only_what_is_named_learns(model, cases, tmp_path, name: str, trainable: tuple[str, ...]) -> None:
    settings = dataclasses.replace(PHASE1, name=name, trainable=trainable, steps=1)
    phase = make_phase(model, settings)
    before = {n: p.detach().clone() for n, p in phase.named_parameters()}
    torch.manual_seed(3)
    runner = Trainer(phase, VolumeSource(cases, model, settings), RunFolder(tmp_path))
    free = {n for n, p in phase.named_parameters() if p.requires_grad}
    runner.train()
    changed = {n for n, p in phase.named_parameters() if not torch.equal(before[n], p)}
    assert changed
    assert changed <= free
    assert set(phase.describe()) == set(trainable)


def test_tokens_do_not_move_without_the_head_that_reads_them(model: BrainGemma3D) -> None:
    settings = dataclasses.replace(PHASE1, name="phase2a", trainable=("projector", "resampler"))
    with pytest.raises(SettingsError, match="has the resampler but not findings"):
        make_phase(model, settings)


def test_kept_tokens_come_with_the_targets_of_their_side(model: BrainGemma3D, cases: Cases) -> None:
    settings = dataclasses.replace(PHASE1, name="phase2a", trainable=("projector", "findings"))
    kept = TokenSource(cases, model, settings)
    phase = make_phase(model, settings)
    sides = set()
    for step in range(6):
        batch = kept.batch([0, 1, 2, 3], step, slice(0, 4))
        losses = {name: value.detach() for name, value in phase(batch).items()}
        assert float(losses["loss"]) == pytest.approx(float(losses["caption"]) + 2 * float(losses["findings"]))
        for row, case in enumerate([0, 1, 2, 3]):
            same = torch.equal(batch["targets"][row].nan_to_num(9), cases.targets[case].nan_to_num(9))
            mirrored = torch.equal(
                batch["targets"][row].nan_to_num(9), mirrored_target(cases.targets[case]).nan_to_num(9)
            )
            assert same or mirrored
            sides.add((case, same, mirrored))
    assert {(True, False), (False, True)} <= {(same, mirrored) for _, same, mirrored in sides}


def test_tokens_are_made_once_for_all_phases_and_not_for_one_that_is_finished(
    model: BrainGemma3D, cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    encode = TokenSource._encode
    monkeypatch.setattr(TokenSource, "_encode", lambda self, copy: made.append(copy) or encode(self, copy))
    settings = dataclasses.replace(PHASE1, name="phase2a", trainable=("projector",))
    kept = TokenSource(cases, model, settings)
    Trainer(make_phase(model, settings), kept, RunFolder(tmp_path)).train()
    assert made == [0, 1, 2, 3]
    other = kept.of(dataclasses.replace(settings, name="phase2b"))
    other.prepare()
    assert made == [0, 1, 2, 3]
    again = Trainer(make_phase(model, settings), TokenSource(cases, model, settings), RunFolder(tmp_path))
    assert again.train().steps == settings.steps
    assert made == [0, 1, 2, 3], "what is finished needs none"


class Killed(Exception):
    """Stands for SIGKILL between two steps."""


@pytest.mark.parametrize("phase", [PHASE1, FOCUSED], ids=["adamw", "muon, focused"])
def test_a_killed_run_goes_on_to_the_same_curve(settings, cases, tmp_path, phase: PhaseSettings) -> None:
    whole = curve(trainer(new_model(settings), cases, tmp_path / "whole", phase))
    cut = trainer(new_model(settings), cases, tmp_path / "cut", phase)

    def kill_at_three(_phase: str, step: int, _total: int, _losses: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    cut.progress = kill_at_three
    with pytest.raises(Killed):
        cut.train()
    resumed = trainer(new_model(settings), cases, tmp_path / "cut", phase)
    assert curve(resumed) == pytest.approx(whole, abs=1e-6)
    assert len(set(whole)) == len(whole)


def test_a_state_of_another_run_is_refused(settings, cases, tmp_path) -> None:
    trainer(new_model(settings), cases, tmp_path).train()
    for change in ({"steps": 9}, {"matrix_rate": 0.02}):
        with pytest.raises(ResumeError, match="another run"):
            trainer(new_model(settings), cases, tmp_path, dataclasses.replace(PHASE1, **change)).train()


def test_muon_trains_the_matrices_inside_layers_and_adamw_the_rest(model: BrainGemma3D) -> None:
    phase = make_phase(model, FOCUSED)
    adamw, muon = make_optimisers(phase, phase.trainable_parameters())
    shapes = [tuple(p.shape) for group in muon.param_groups for p in group["params"]]
    assert len(shapes) == 6 + 6  # q, k, v, out, two of the MLP: of one encoder layer and one resampler layer
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert id(model.vision.depth_position) in others
    assert id(model.grounding_head.mlp[0].weight) in others
    assert {group["peak"] for group in muon.param_groups} == {0.02}


def test_all_patches_seen_one_by_one_give_the_losses_of_the_volume(model: BrainGemma3D, cases: Cases) -> None:
    """The way of a part of the patches through encoder, resampler and targets, against the way of all."""
    phase = make_phase(model, PHASE1)
    batch = VolumeSource(cases, model, PHASE1).batch([0, 1, 2, 3], 0, slice(0, 4))
    count = int(torch.tensor(model.vision.patch_grid).prod())
    with torch.no_grad():
        whole = phase(batch)
        parts = phase({**batch, "seen": torch.arange(count).expand(4, -1)})
        fewer = phase({**batch, "seen": torch.arange(count - 5).expand(4, -1)})
    assert {k: float(v) for k, v in parts.items()} == pytest.approx({k: float(v) for k, v in whole.items()}, rel=1e-4)
    assert float(fewer["grounding"]) != pytest.approx(float(whole["grounding"]), rel=1e-4)


def test_what_is_seen_holds_the_lesion_and_does_not_betray_it() -> None:
    masks = torch.zeros(8, 4, 8, 16, 16)
    masks[:4, 1, 4:8, 0:4, 0:4] = 1  # four of eight cases: patch (1, 0, 0), mirrored at (1, 0, 3)
    rng = torch.Generator().manual_seed(0)
    seen = torch.zeros(8, 32)
    for _ in range(200):
        chosen = focus(masks, (4, 4, 4), 8, rng)
        assert chosen.shape == (8, 8)
        assert (chosen.diff(dim=1) > 0).all()
        seen += torch.zeros(8, 32).scatter(1, chosen, 1.0)
    lesion, mirror = 16, 19
    assert (seen[:4][:, [lesion, mirror]] == 200).all()
    assert (seen[4:][:, [lesion, mirror]] == 200).all(), "a healthy case looks where the others' lesions are"
    assert (seen[:, 0] > 20).all()
    assert focus(torch.zeros_like(masks), (4, 4, 4), 99, rng).shape == (8, 32)


def test_the_published_pooling_cannot_see_a_part(settings: TrainingSettings, cases: Cases, tmp_path: Path) -> None:
    pooled = dataclasses.replace(settings, model={**settings.model, "weights_format": "published"})
    phase = dataclasses.replace(FOCUSED, trainable=tuple(t for t in FOCUSED.trainable if t != "resampler"))
    with pytest.raises(SettingsError, match="need the Perceiver"):
        trainer(new_model(pooled), cases, tmp_path, phase).train()


def test_accumulated_passes_give_the_curve_of_one_pass(settings, cases, tmp_path) -> None:
    """Contrast and findings included; the passes of the second run come from a process of their own."""
    one = dataclasses.replace(PHASE1, steps=2)
    two = trainer(new_model(settings), cases, tmp_path / "b", dataclasses.replace(one, accumulate=2))
    two.workers = 1
    assert curve(two) == pytest.approx(curve(trainer(new_model(settings), cases, tmp_path / "a", one)), rel=1e-5)


def test_validation_does_not_depend_on_the_batch(model: BrainGemma3D, cases: Cases) -> None:
    for base in (PHASE1, dataclasses.replace(PHASE1, name="phase2a", trainable=("projector", "findings"))):
        phase = make_phase(model, base).eval()
        measured = [validator(phase, cases, dataclasses.replace(base, batch=batch))() for batch in (1, 3, 4)]
        for other in measured[1:]:
            assert other == pytest.approx(measured[0], rel=1e-4)
        assert measured[0]["loss"] > 0
    assert set(measured[0]) == {"caption", "findings", "loss"}


def test_a_phase_that_stops_improving_ends_at_its_best(settings, cases, tmp_path) -> None:
    patient = dataclasses.replace(PHASE1, steps=20, validate_every=1, patience=2)
    runner = trainer(new_model(settings), cases, tmp_path, patient)
    measured = iter([3.0, 1.0, 2.0, 2.5, 0.0])
    kept: list[torch.Tensor] = []
    weight = runner.phase.model.resampler.latents

    def validate() -> dict[str, float]:
        kept.append(weight.detach().clone())
        return {"loss": next(measured)}

    runner.validate = validate
    outcome = runner.train()
    assert (outcome.steps, outcome.best, outcome.stopped_early) == (4, 1.0, True)
    assert torch.equal(weight, kept[1])
    assert not torch.equal(weight, kept[3])


def sigmoid(images: torch.Tensor, texts: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    return pairwise_sigmoid_loss(images, texts, same, torch.tensor(2.0), torch.tensor(-2.0))


def infonce(images: torch.Tensor, texts: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    return infonce_loss(images, texts, same, torch.tensor(2.0))


@pytest.mark.parametrize("contrast", [sigmoid, infonce])
def test_contrast_teaches_at_batch_one(contrast) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 8, requires_grad=True)
    contrast(image, torch.randn(4, 8), torch.zeros(1, 4, dtype=torch.bool)).backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 1e-4


@pytest.mark.parametrize("contrast", [sigmoid, infonce])
def test_equal_texts_are_no_negatives(contrast) -> None:
    image, text = torch.randn(2, 8), torch.randn(1, 8).repeat(2, 1)
    with_negatives = contrast(image, text, torch.zeros(2, 2, dtype=torch.bool))
    assert contrast(image, text, torch.ones(2, 2, dtype=torch.bool)) < with_negatives


def test_infonce_is_the_share_of_the_own_text() -> None:
    torch.manual_seed(0)
    images, texts = torch.randn(3, 8), torch.randn(7, 8)
    cosine = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    expected = -torch.stack([(7 * cosine[i, i]).exp() / (7 * cosine[i]).exp().sum() for i in range(3)]).log().mean()
    found = infonce_loss(images, texts, torch.zeros(3, 7, dtype=torch.bool), torch.tensor(7.0).log())
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_picture_is_held_against_more_reports_than_those_of_its_step(model: BrainGemma3D, cases: Cases) -> None:
    source = VolumeSource(cases, model, dataclasses.replace(PHASE1, batch=1, negatives=2))
    source.prepare()
    first, second = (source.batch([1], step, slice(0, 1)) for step in range(2))
    assert first["further_texts"].shape[0] == 2
    assert first["text_targets"].shape[0] == 3
    assert torch.equal(first["text_targets"][0].nan_to_num(9), first["targets"][0].nan_to_num(9))
    assert not torch.equal(first["further_texts"], second["further_texts"])


def test_parts_learn_at_rates_of_their_own(model: BrainGemma3D) -> None:
    phase = make_phase(model, dataclasses.replace(PHASE1, rates={"vision": 1e-5, "findings": 3e-3}))
    parts = phase.trainable_parameters()
    (adamw,) = make_optimisers(phase, parts)
    rates = {id(p): group["peak"] for group in adamw.param_groups for p in group["params"]}
    for name, expected in (("vision", 1e-5), ("findings", 3e-3), ("resampler", 1e-3), ("auxiliary", 1e-3)):
        assert {rates[id(p)] for p in parts[name]} == {expected}


def test_a_registered_loss_counts_with_its_weight(model: BrainGemma3D, cases: Cases) -> None:
    wanted = dataclasses.replace(PHASE1, losses={"spread": 0.5})
    with pytest.raises(SettingsError, match=r"phase1.losses: no loss is registered as spread"):
        make_phase(model, wanted)
    register_loss("spread")(lambda seen: seen.tokens.std(dim=1).mean())
    try:
        batch = VolumeSource(cases, model, PHASE1).batch([0, 1, 2, 3], 0, slice(0, 4))
        torch.manual_seed(0)
        plain = make_phase(model, PHASE1)(batch)
        torch.manual_seed(0)
        more = make_phase(model, wanted)(batch)
        added = (more["loss"] - plain["loss"]).item()
        assert added == pytest.approx(0.5 * more["spread"].item(), rel=1e-3)
        with pytest.raises(SettingsError, match="spread already"):
            register_loss("spread")
    finally:
        del LOSSES["spread"]


def test_gradient_checkpointing_changes_no_gradient(settings: TrainingSettings, cases: Cases) -> None:
    found = []
    for kept in (True, False):
        model = start_model(dataclasses.replace(settings, gradient_checkpointing=not kept), torch.device("cpu"))
        torch.manual_seed(0)
        phase = make_phase(model, PHASE1)
        phase.trainable_parameters()
        phase.train()
        phase(VolumeSource(cases, model, PHASE1).batch([0, 1], 0, slice(0, 2)))["loss"].backward()
        found.append(model.vision.siglip.encoder.layers[0].mlp.fc1.weight.grad)
        assert model.vision.siglip.encoder.layers[0].gradient_checkpointing is not kept
    assert torch.equal(*found)


def test_steps_are_timed_where_they_are_asked_for(settings, cases, tmp_path, monkeypatch) -> None:
    timed, steps = trainer(new_model(settings), cases, tmp_path, FOCUSED), []
    batch = timed.source.batch
    monkeypatch.setattr(timed.source, "batch", lambda *given: steps.append(given[1]) or batch(*given))
    assert all(timed.time_steps(1, first) > 0 for first in (0, FOCUSED.focus_steps))
    assert steps == [0, 1, 3, 4]


def test_a_plan_weighs_focused_steps_and_others(settings, monkeypatch) -> None:
    """Later steps see whole volumes, and take several times as long."""
    monkeypatch.setattr(Trainer, "time_steps", lambda _trainer, _count, first: 5.0 if first else 1.0)
    prepared = []
    monkeypatch.setattr(VolumeSource, "prepare", lambda source: prepared.append(source.cases.synthetic))
    timed = plan._timed(new_model(settings), FOCUSED, settings.data)
    assert (timed.steps, timed.seconds) == (4, (3 * 1.0 + 1 * 5.0) / 4)
    assert prepared == [True]


def test_each_pass_sees_each_case_once() -> None:
    seen = [i for step in range(5) for i in indices(10, 2, step, seed=1)]
    assert sorted(seen) == list(range(10))
    assert seen != [i for step in range(5, 10) for i in indices(10, 2, step, seed=1)]


def test_rounding_to_four_bit_changes_once_and_then_hardly_any_more(model) -> None:
    layers = [m for n, m in model.language_model.named_modules() if isinstance(m, torch.nn.Linear) and "head" not in n]
    before = [m.weight.detach().clone() for m in layers]
    assert round_to_nf4(model.language_model) == len(layers)
    once = [m.weight.detach().clone() for m in layers]
    round_to_nf4(model.language_model)
    first = max(float((a - b).abs().max()) for a, b in zip(before, once, strict=True))
    second = max(float((a - m.weight.detach()).abs().max()) for a, m in zip(once, layers, strict=True))
    assert second < 0.2 * first


def test_phases_run_and_the_weights_can_be_loaded(model, cases, tmp_path) -> None:
    for name, trainable in (("phase1", PHASE1.trainable), ("phase2b", ("projector", "lora"))):
        phase = dataclasses.replace(PHASE1, name=name, trainable=trainable, steps=2)
        run_phase(model, phase, cases, tmp_path)
    model.save_pretrained(tmp_path / "weights")
    again = BrainGemma3D.from_pretrained(tmp_path / "weights", quantization="none", device="cpu")
    assert again.generate_report(cases.volumes[:1].float(), max_new_tokens=4) is not None
    for name in ("phase1.csv", "phase1.png", "phase2b.state.pt"):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"trainable": ("nothing",)}, "trainable.0: .*'findings' or 'auxiliary', got 'nothing'"),
        ({"trainable": ("visoin",)}, "did you mean vision?"),
        ({"trainable": ()}, "trainable: .*at least 1"),
        ({"steps": 0}, "either steps or epochs"),
        ({"epochs": 3}, "either steps or epochs"),
        ({"batch": 3, "accumulate": 2}, "must be a multiple of accumulate"),
        ({"learning_rate": 0.0}, "learning_rate: .*greater than 0, got 0.0"),
        ({"matrix_rate": -0.1}, "matrix_rate: "),
        ({"focus_steps": 2}, "focus_steps belong to phase1, with focus_patches"),
        ({"speed": 3}, "speed is unknown; did you mean seed?"),
    ],
)
def test_impossible_phases_are_refused(wrong: dict[str, object], fault: str) -> None:
    phase = {k: v for k, v in dataclasses.asdict(PHASE1).items() if k != "name"} | wrong
    with pytest.raises(SettingsError, match=rf"a\.toml: phase1.*{fault}") as raised:
        parse_settings({"phase1": phase}, "a.toml")
    assert len(str(raised.value).splitlines()) == 1


def test_focus_is_of_phase1_alone() -> None:
    phase = {"trainable": ["projector"], "steps": 1, "focus_steps": 2, "focus_patches": 8}
    with pytest.raises(SettingsError, match="focus_steps belong to phase1"):
        parse_settings({"phase2a": phase}, "a.toml")


def test_every_fault_of_a_configuration_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'weihts = "x"\nphase2b = 5\n[model]\nlora_rnak = 3\n[model.volume]\ngird = [1]\n'
        "[model.vision]\nhiden_size = 3\n"
        "[data]\ncuont = 3\n[phase1]\ntrainable = ['projector']\nsteps = 1\nspeed = 3\nbatch = 0\n"
    )
    with pytest.raises(SettingsError) as raised:
        load_settings(tmp_path / "a.toml")
    found = str(raised.value).splitlines()
    for fault in (
        "weihts is unknown; did you mean weights?",
        "phase2b: expected a table, got 5",
        "model.lora_rnak is unknown; did you mean lora_rank?",
        "model.volume.gird is unknown; did you mean grid?",
        "model.vision.hiden_size is unknown; did you mean hidden_size?",
        "data.cuont is unknown; did you mean count?",
        "phase1.speed is unknown; did you mean seed?",
        "phase1.batch: Input should be greater than or equal to 1, got 0",
    ):
        assert sum(fault in line for line in found) == 1, fault
    assert len(found) == 8
    with pytest.raises(SettingsError, match="no such"):
        load_settings(tmp_path / "b.toml")
