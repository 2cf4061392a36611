from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.config.load import find_configuration, load_settings, origins, with_options
from daemon.config.sections import Settings
from daemon.config.template import configuration_template
from daemon.errors import ConfigurationError


def write(folder: Path, text: str) -> Path:
    path = folder / "braingemma.toml"
    path.write_text(text)
    return path


def test_defaults_are_those_of_the_documentation() -> None:
    settings = load_settings()
    assert settings.listener.ae_title == "BRAINGEMMA"
    assert (settings.listener.host, settings.listener.port) == ("127.0.0.1", 11112)
    assert settings.assembly.quiet_seconds == 10
    assert settings.model.weights == "demo"
    assert not settings.model.allow_demo
    assert (settings.explain.samples, settings.explain.segments, settings.explain.seed) == (100, 20, 42)
    assert settings.storage.folder.is_absolute()


def test_file_is_read_and_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, '[listener]\nport = 104\nae_title = "SITE"\n[explain]\nsamples = 50\n')
    monkeypatch.setenv("BRAINGEMMA_LISTENER__PORT", "11113")
    settings = load_settings(path)
    assert settings.listener.port == 11113
    assert settings.listener.ae_title == "SITE"
    assert settings.explain.samples == 50
    found = {name: origin for name, _, origin in origins(settings, path)}
    assert found["listener.port"] == "BRAINGEMMA_LISTENER__PORT"
    assert found["listener.ae_title"] == str(path)
    assert found["listener.host"] == "default"


def test_every_fault_is_reported_at_once_with_its_place_and_value(tmp_path: Path) -> None:
    path = write(tmp_path, "[listener]\nport = 99999\ntypo = 1\n[explain]\nsamples = -3\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("listener.port" in line and "99999" in line for line in lines)
    assert any("listener.typo" in line for line in lines)
    assert any("explain.samples" in line and "-3" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[listener\n", "braingemma.toml"),
        ('[[destinations]]\nname = "a"\n', "ae_title, host, port must be set"),
        ('[web]\nuser_header = "X-Remote-User"\n', "name the addresses of the reverse proxies in trusted_proxies"),
        ('[web]\ntrusted_proxies = ["proxy.example"]\n', "does not appear to be an IPv4 or IPv6 address"),
        ('[web]\nproxy_user = "no-such-account"\n', "expected an account of this machine"),
        ("[selection]\ninclude = [3]\n", "selection.include"),
    ],
)
def test_wrong_files_are_refused_in_words(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        load_settings(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[selection]\nreport = "some"\n', "selection.report"),
        ('[checks]\nnoise = "maybe"\n', "checks.noise"),
        (
            "[results]\ndeidentify = true\n"
            '[review]\nverified_sr = true\norganization = "O"\n[web]\n'
            'user_header = "X"\ntrusted_proxies = ["192.0.2.1"]\n',
            "results.deidentify: excludes review.verified_sr",
        ),
        (
            '[results]\ndeidentify = true\n[engine]\ndatabase_url = "postgresql://h/d"\n',
            "needs results.deidentify_key",
        ),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        load_settings(write(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_destination_names_are_unique(tmp_path: Path) -> None:
    one = '[[destinations]]\nname = "pacs"\nae_title = "A"\nhost = "127.0.0.1"\nport = 104\n'
    with pytest.raises(ConfigurationError, match="twice: pacs"):
        load_settings(write(tmp_path, one + one))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.7", False), ("pacs.example", False)],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    settings = Settings.model_validate({"destinations": [{"name": "d", "ae_title": "A", "host": host, "port": 104}]})
    assert settings.destinations[0].is_loopback is expected


def test_a_new_file_gives_the_defaults_and_names_every_key(tmp_path: Path) -> None:
    text = configuration_template()
    assert load_settings(write(tmp_path, text)).model_dump() == load_settings().model_dump()
    for section, field in Settings.model_fields.items():
        assert f"[{section}]" in text
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"# {key} = " in text


@pytest.mark.parametrize(
    ("url", "folder"),
    [("/srv/x", "/srv/x"), ("file:///srv/x", "/srv/x"), ("s3://bucket/x", None), ("", None), ("x", None)],
)
def test_second_copies_need_a_shared_folder(tmp_path: Path, url: str, folder: str | None) -> None:
    storage = {"folder": tmp_path, "shared_url": url}
    assert Settings.model_validate({"storage": storage}).storage.shared_folder == (Path(folder) if folder else None)
    wanted = {"storage": storage, "listener": {"replicate": "shared"}, "engine": {"database_url": "postgresql://x/y"}}
    if folder is None:
        with pytest.raises(ValidationError, match="needs engine"):
            Settings.model_validate(wanted)
    else:
        assert Settings.model_validate(wanted).listener.replicate == "shared"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[listener]\nprot = 3\n", "port"),
        ("[listner]\nport = 3\n", "listener"),
        ('[[destinations]]\nname = "p"\nae_titel = "A"\nhost = "h"\nport = 1\n', "ae_title"),
    ],
)
def test_an_unknown_key_says_which_one_was_meant(tmp_path: Path, text: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean {meant}"):
        load_settings(write(tmp_path, text))


def test_the_configuration_is_found_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    (home / "braingemma").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.delenv("BRAINGEMMA_CONFIG", raising=False)
    user = write(home / "braingemma", "")
    assert find_configuration() == user
    write(here, "")
    assert find_configuration() == Path("braingemma.toml")
    monkeypatch.setenv("BRAINGEMMA_CONFIG", str(tmp_path / "named.toml"))
    assert find_configuration() == tmp_path / "named.toml"  # not there: loading it says so
    assert find_configuration(user) == user


def test_options_of_a_command_line_stand_above_the_file_and_those_not_given_do_not() -> None:
    settings = Settings.model_validate({"model": {"weights": "w", "device": "cpu"}, "explain": {"seed": 7}})
    changed = with_options(
        settings,
        model={"weights": None, "device": "cuda", "temperature": 0.0},
        explain={"enabled": False, "seed": None},
        results={"deface": None},
    )
    assert (changed.model.weights, changed.model.device, changed.model.temperature) == ("w", "cuda", 0.0)
    assert (changed.explain.enabled, changed.explain.seed) == (False, 7)
    assert changed.results == settings.results
    assert settings.explain.enabled
    with pytest.raises(ConfigurationError, match=r"^options: explain\.seed: .*valid integer"):
        with_options(settings, explain={"seed": "x"})
