"""The table of result kinds holds, and is the only place that names a kind."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import dcmread
from results_factory import default_pack, make_case

from daemon.config.sections import Results
from dicom_io.errors import PackError
from dicom_io.objects import pdf
from dicom_io.objects.kinds import BY_NAME, KINDS, PDF, REJECTION, SC, SR
from dicom_io.pack import encode, validate
from dicom_io.pack.encode import encode_pack, wanted

ROOT = Path(__file__).parents[3]


def test_each_kind_differs_from_the_others() -> None:
    for of_kind in ("name", "series_number", "series_description", "file_name"):
        assert len({getattr(kind, of_kind) for kind in KINDS}) == len(KINDS), of_kind
    assert len({kind.series_description[:12] for kind in KINDS}) == len(KINDS), "OHIF cuts them there"
    assert all(len(f"{kind.series_description}, synthetic-trained demo") <= 64 for kind in KINDS)
    assert (SR.file(), SC.file(7)) == ("sr.dcm", "sc/0007.dcm")
    assert KINDS[0] is SR
    assert KINDS[-1] is REJECTION


def test_each_kind_that_a_pack_holds_has_a_switch_with_the_same_default() -> None:
    listed = {kind.name: kind.by_default for kind in KINDS if kind.listed}
    switches = {name: value for name, value in Results().model_dump().items() if name in BY_NAME}
    assert switches == listed


def test_what_is_replaced_is_withdrawn_and_the_report_is_neither() -> None:
    """The lists of both disagreed once: regions of TID 1500 were replaced, but stood on in the archive."""
    assert [kind.name for kind in KINDS if kind.replaced != kind.withdrawn] == []
    assert not SR.replaced


@pytest.mark.parametrize("name", [kind.name for kind in KINDS if kind.listed])
def test_what_is_made_is_what_the_table_says(name: str) -> None:
    kind, pack = BY_NAME[name], default_pack()[1]
    found = pack.of_kind(name)
    if not found:
        pytest.skip("not in the default case")
    header = dcmread(found[0].path, stop_before_pixels=True)
    assert (header.SOPClassUID, header.Modality) == (kind.sop_class_uid, kind.modality)
    assert header.SeriesNumber == kind.series_number
    assert header.SeriesDescription.startswith(kind.series_description)
    assert found[0].path.relative_to(pack.objects[0].path.parent).as_posix() == kind.file()


def test_switches_must_make_sense() -> None:
    assert wanted() == tuple(kind for kind in KINDS if kind.by_default)
    with pytest.raises(PackError, match=r"expected some of sr, .*, got ct"):
        wanted(ct=True)


@pytest.mark.parametrize("blamed", [False, True])
def test_a_new_kind_is_an_entry_and_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blamed: bool) -> None:
    """It is made, checked by its own rules, and listed, and no other file knows of it."""
    kind = replace(PDF, name="leaflet", file_name="leaflet.dcm", made_by="leaflet", needs=SR.name)
    faults = ["too short"] if blamed else []
    monkeypatch.setitem(sys.modules, "leaflet", SimpleNamespace(make=pdf.make, faults=lambda *_: faults))
    monkeypatch.setitem(BY_NAME, kind.name, kind)
    for user in (encode, validate):
        monkeypatch.setattr(user, "KINDS", (*KINDS, kind))
    with pytest.raises(PackError, match="leaflet needs sr as well"):
        wanted(leaflet=True, sr=False)
    case = make_case(tmp_path / "case")

    def packed() -> list[str]:
        pack = encode_pack(**case.arguments(kinds=[SR, kind], identity="x", out=tmp_path / "out"))
        return [item.kind for item in pack.objects]

    if not blamed:
        assert packed() == ["sr", "leaflet"]
        return
    with pytest.raises(PackError, match=r"leaflet\.dcm: too short"):
        packed()
    assert not (tmp_path / "out").exists()


def test_no_other_file_names_a_kind() -> None:
    """A new kind is one entry of the table: nothing else may list the kinds."""
    found = []
    for folder in ("daemon", "dicom_io"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "kinds.py":
                constants = (n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant))
                found += [f"{path.relative_to(ROOT)}: {value!r}" for value in constants if value in BY_NAME]
    assert found == []
