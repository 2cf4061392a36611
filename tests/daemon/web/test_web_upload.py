"""Upload of a study: what is taken, where it goes, and what is refused before it costs anything."""

from __future__ import annotations

import http.client
import io
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ingest_support import make_series
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from web_support import Site, audit_lines, start_site

from daemon.assemble.assembler import Assembler
from daemon.database.engine import open_index
from daemon.web import upload

TOKEN = "a-token-of-24-characters"
WHO = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    served = start_site(tmp_path, {"upload": True, "upload_mb": 1, "token": TOKEN}, assembly={"quiet_seconds": 1})
    yield served
    served.server.stop()


def part10(dataset: Dataset) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def packed(members: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def send(site: Site, *files: tuple[str, bytes], form_token: str | None = None, **headers: str) -> tuple[int, str]:
    """As a browser sends the form."""
    lines = [] if form_token is None else [("form_token", None, form_token.encode())]
    body = b""
    for name, filename, data in [*lines, *(("files", name, data) for name, data in files)]:
        more = f'; filename="{filename}"' if filename else ""
        body += f'--XX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"
    named = {"Content_Type": "multipart/form-data; boundary=XX", **(headers or WHO)}
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=60)
    given = {name.replace("_", "-"): value for name, value in named.items()}
    connection.request("POST", "/upload", body + b"--XX--\r\n", given)
    answer = connection.getresponse()
    result = answer.status, " ".join(answer.read().decode().split())
    connection.close()
    return result


def received(site: Site) -> int:
    """Instances that the assembler hands over."""
    assembler = Assembler(site.settings, open_index(site.settings, site.store.engine), lambda _arrival: None)
    assembler.recover(0)
    return sum(arrival.instances for arrival in assembler.step(1000))


def test_files_and_archives_go_where_the_listener_puts_what_it_receives(site: Site) -> None:
    one, *rest = [part10(dataset) for dataset in make_series(4)]
    archive = packed([(f"a/b/{n}.dcm", data) for n, data in enumerate(rest)] + [("README.txt", b"hello")])
    status, text = send(site, ("one.dcm", one), ("study.zip", archive))
    assert status == 200
    assert "4 images were taken, 1 file was not" in text
    assert "study.zip: README.txt: expected a DICOM file (PS3.10), this is none" in text
    assert received(site) == 4
    [line] = audit_lines(site)
    assert (line["event"], line["instances"], line["refused"]) == ("uploaded", 4, 1)
    left = [path.name for path in site.settings.storage.folder.iterdir()]
    assert not [name for name in left if name.startswith("tmp")]


def as_link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def lying(size: int) -> bytes:
    """An archive whose member says that it holds one byte."""
    data = packed([("x", bytes(size))])
    said = size.to_bytes(4, "little")
    assert said in data
    return data.replace(said, (1).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("archive", "status", "why"),
    [
        (packed([("../../x.dcm", b"x")]), 400, "expected names within the archive"),
        (packed([("/etc/x", b"x")]), 400, "expected names within the archive"),
        (packed([("..\\x", b"x")]), 400, "expected names within the archive"),
        (packed([(as_link("x"), b"/etc/passwd")]), 400, "expected names within the archive"),
        (packed([("bomb", bytes(5_000_000))]), 413, "more than 1 MB"),
        (packed([(f"b{n}", bytes(400_000)) for n in range(3)]), 413, "more than 1 MB"),
        (lying(5_000_000), 400, "cannot be read"),
        (packed([("x", b"x")])[:-9], 200, "0 images were taken"),
    ],
    # An archive holds the time of its making, which must not be part of a test's name.
    ids=["above", "absolute", "backslash", "link", "bomb", "many bombs", "lying", "cut short"],
)
def test_archives_that_are_none_of_images_are_refused_as_a_whole(
    site: Site, archive: bytes, status: int, why: str
) -> None:
    found, text = send(site, ("x.zip", archive))
    assert (found, why in text) == (status, True), text
    assert received(site) == 0


def test_more_files_than_a_study_has_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_FILES", 3)
    status, text = send(site, ("x.zip", packed([(str(n), b"x") for n in range(4)])))
    assert (status, "at most 3 files" in text) == (413, True)


def test_an_upload_is_bounded_and_only_ours(site: Site, tmp_path: Path) -> None:
    image = part10(make_series(1)[0])
    assert send(site, ("x", bytes(2_000_000)))[0] == 413
    cookie = {"Cookie": site.ask("/login", method="POST", form={"token": TOKEN})[1]["set-cookie"].partition(";")[0]}
    assert send(site, ("x", image), **cookie)[0] == 403
    assert send(site, ("x", image), form_token="0" * 64, **cookie)[0] == 403
    token = site.form_token("/upload", **cookie)
    assert send(site, ("x", image), form_token=token, Origin="https://evil.example", **cookie)[0] == 403
    assert received(site) == 0
    assert send(site, ("x", image), form_token=token, **cookie)[0] == 200
    assert received(site) == 1
    assert site.ask("/upload", method="POST", form={"a": "b"}, **WHO)[0] == 400
    (tmp_path / "off").mkdir()
    off = start_site(tmp_path / "off")
    try:
        assert off.ask("/upload")[0] == 404
        assert send(off, ("x", image), Accept="*/*")[0] == 404
        assert "/upload" not in off.ask("/")[2].decode()
    finally:
        off.server.stop()


def test_a_class_that_the_listener_refuses_is_refused_here_too(tmp_path: Path) -> None:
    refused = {"refused_storage_classes": ["MRImageStorage"]}
    site = start_site(tmp_path, {"upload": True}, listener=refused)
    try:
        token = site.form_token("/upload")
        image = part10(make_series(1)[0])
        text = send(site, ("<b>x", image), form_token=token, Accept="*/*")[1]
        assert "is not taken" in text
        assert "&lt;b&gt;x: SOP class" in text
    finally:
        site.server.stop()
