"""How a report is written: by the weights, by `[model]`, by the command line; and that an empty one is no report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
from published_files import text_config, write_published
from pydantic import ValidationError
from typer.testing import CliRunner

from daemon.cli.app import app
from daemon.config.sections import DECODING, Model, Settings
from daemon.errors import Permanent
from daemon.jobs.report import SMALL_LESIONS
from daemon.pipeline.process import process
from training.phantoms.phantom import make_phantom

PUBLISHED = {
    "decoding": "sampling",
    "max_new_tokens": 12,
    "min_new_tokens": 10,
    "temperature": 0.1,
    "top_k": 50,
    "top_p": 0.9,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "seed": 42,
}


@pytest.fixture(scope="module")
def flair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flair") / "flair.nii.gz"
    nib.save(make_phantom(6_400_002, stripped=True).volume, path)
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write_published(tmp_path / "weights")


def settings(published: Path, *, explain: bool = False, **model: Any) -> Settings:
    facts = {"weights": str(published), "quantization": "none", "max_new_tokens": 12, **model}
    checks = dict.fromkeys(("brain", "coverage", "noise", "contrast", "domain"), "off")
    return Settings.model_validate({"model": facts, "explain": {"enabled": explain}, "checks": checks})


def test_published_weights_write_as_the_public_code_and_the_same_twice(
    flair: Path, published: Path, tmp_path: Path
) -> None:
    reports = [
        json.loads(process(flair, tmp_path / f"out{n}", settings(published)).report_json.read_text()) for n in range(2)
    ]
    assert reports[0]["model"]["generation"] == PUBLISHED
    assert reports[0]["input"]["preprocessing"]["reading"] == "whole"
    assert reports[0]["report"] == reports[1]["report"] != ""
    [cut] = [warning for warning in reports[0]["warnings"] if "cut after 12 tokens" in warning]
    assert cut in reports[0]["doubts"]
    assert [candidate["ended"] for candidate in reports[0]["candidates"]] == [False]
    assert SMALL_LESIONS not in reports[0]["intended_use"]


def test_the_command_line_and_the_configuration_say_how_in_place_of_the_weights(
    flair: Path, published: Path, tmp_path: Path
) -> None:
    config = tmp_path / "braingemma.toml"
    config.write_text(
        '[model]\nquantization = "none"\nrepetition_penalty = 1.5\ntop_p = 0.5\n[checks]\nbrain = "off"\n'
    )
    asked = [
        *("process", str(flair), "--out", str(tmp_path / "out"), "--weights", str(published), "--no-explain"),
        *("--config", str(config), "--temperature", "0", "--max-new-tokens", "11", "--no-repeat-ngram-size", "2"),
    ]
    result = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["model"]["generation"] == {
        "decoding": "greedy",
        "max_new_tokens": 11,
        "min_new_tokens": 10,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 2,
    }


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"repetition_penalty": 0}, {"min_new_tokens": -1}]
)
def test_values_without_meaning_are_faults_of_the_configuration(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Model.model_validate(wrong)


def test_what_is_not_stated_is_left_to_the_weights() -> None:
    assert Model().decoding() == {"max_new_tokens": 256, "seed": 42, "speculate": 0}
    stated = Model.model_validate({**dict.fromkeys(DECODING, 1), "temperature": 0})
    assert stated.decoding() == {**dict.fromkeys(DECODING, 1), "temperature": 0}


@pytest.mark.parametrize("explain", [True, False])
def test_an_empty_report_fails_with_its_reason(flair: Path, published: Path, tmp_path: Path, explain: bool) -> None:
    config = published / "language_model" / "config.json"
    stated = json.loads(config.read_text())
    stated["text_config"]["eos_token_id"] = list(range(text_config().vocab_size))  # any first token is the end
    config.write_text(json.dumps(stated))
    with pytest.raises(Permanent, match=r"report: the report is empty: the model wrote the end of the report before"):
        process(flair, tmp_path / "out", settings(published, explain=explain, min_new_tokens=0, temperature=0))
    assert not (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / "explain").exists()
