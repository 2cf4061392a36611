"""Alert rules and dashboard: promtool takes them, and they ask for metrics that there are, and for all of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from web_support import add_job, start_site

import daemon.receive.counters  # noqa: F401 - what receivers count, in the library's own registry

HERE = Path(__file__).parents[1] / "deploy" / "monitoring"
RULES, DASHBOARD = HERE / "braingemma.rules.yml", HERE / "grafana.json"


def asked(path: Path) -> set[str]:
    return set(re.findall(r"\bbraingemma_[a-z0-9_]+", path.read_text()))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of samples, and of families without one yet, as `/metrics` of the service and receivers has them."""
    from prometheus_client import REGISTRY, generate_latest

    site = start_site(tmp_path_factory.mktemp("site"))
    try:
        add_job(site, "a")
        text = site.ask("/metrics")[2].decode()
    finally:
        site.server.stop()
    if "braingemma_acknowledge_seconds" not in text:  # counted by receiver processes, of which none runs here
        text += generate_latest(REGISTRY).decode()
    names = set()
    for name, kind in re.findall(r"^# TYPE (braingemma_\w+) (\w+)$", text, re.MULTILINE):
        if name.endswith("_created"):
            continue
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        else:
            names.add(name)
    return names


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=["rules", "dashboard"])
def test_what_is_asked_for_is_served(path: Path, served: set[str]) -> None:
    assert asked(path)
    assert asked(path) <= served


def test_every_metric_is_drawn(served: set[str]) -> None:
    def family(name: str) -> str:
        return re.sub(r"_(bucket|sum|count)$", "", name)

    assert {family(name) for name in served} == {family(name) for name in asked(DASHBOARD)}


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["type"] == "row" or all(
            t["expr"] and t["datasource"]["type"] == "prometheus" for t in panel["targets"]
        )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's prometheus is not installed")
@pytest.mark.parametrize("command", [("check", "rules", RULES.name), ("test", "rules", "braingemma.rules.test.yml")])
def test_promtool_takes_the_rules(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=HERE, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's prometheus is not installed")
def test_prometheus_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [t["expr"].replace("$scanner", ".*") for panel in panels for t in panel.get("targets", ())]
    rules = [{"record": f"q:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
