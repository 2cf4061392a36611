"""Text of the code extensions, by the examples of PS3.5 Annexes H, I, K; what does not fit its label is not made to."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset, config
from series_factory import make_files, only_series

from dicom_io import header
from dicom_io.charset import decode
from dicom_io.content.sources import normalised_header
from dicom_io.volume.nifti import convert_series

EXAMPLES = {
    "Chinese": (["", "ISO 2022 IR 58"], "Wang^XiaoDong=王^小东",
                b"Wang^XiaoDong=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동",
               b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう",
                 b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"),
    "Japanese with katakana": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
                               b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J"),
    "Greek in a Latin text": (["ISO 2022 IR 100", "ISO 2022 IR 126"], "Jérôme^Δ", b"J\xe9r\xf4me^\x1b-F\xc4"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_names_of_the_code_extensions_come_out_exactly(name: str) -> None:
    labels, text, raw = EXAMPLES[name]
    assert decode(raw, labels) == text


@pytest.mark.parametrize(
    ("raw", "labels"),
    [(b"J\xe9r\xf4me", ["ISO_IR 192"]), (b"J\xe9r\xf4me", []), (b"J\xe9r\xf4me", [""]), (b"a\x1b$)Q\xa1", ["", "X"]),
     (b"\x1b$)A\xcd", ["", "ISO 2022 IR 58"]), (b"abc", ["ISO_IR 999"])],
)  # fmt: skip
def test_what_does_not_fit_its_label_is_not_made_to(raw: bytes, labels: list[str]) -> None:
    assert decode(raw, labels) is None


def test_the_alphabets_of_one_byte_agree_with_pydicom() -> None:
    for label in ("ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 126", "ISO_IR 144", "ISO_IR 148"):
        raw = bytes(
            b for b in range(0xA1, 0x100) if b not in (0xA4, 0xA5, 0xAA, 0xAE, 0xC3, 0xD0, 0xD2, 0xE3, 0xF0, 0xFF)
        )
        codec = pydicom.charset.python_encoding[label]
        expected = "".join(c for c in raw.decode(codec, errors="ignore"))
        fitting = bytes(b for b in raw if bytes([b]).decode(codec, errors="ignore"))
        assert decode(fitting, [label]) == expected


def written(folder: Path, label: str, name: bytes) -> list[Path]:
    """A series with these bytes as PatientName under this label."""
    files = make_files(folder, edit=lambda d, _: setattr(d, "SpecificCharacterSet", "ISO_IR 6"))
    for path in files:
        raw = path.read_bytes()
        for tag, value in ((b"\x08\x00\x05\x00CS", label.encode()), (b"\x10\x00\x10\x00PN", name)):
            padded = value + b" " * (len(value) % 2)
            at = raw.index(tag)
            end = at + 8 + int.from_bytes(raw[at + 6 : at + 8], "little")
            raw = raw[: at + 6] + len(padded).to_bytes(2, "little") + padded + raw[end:]
        path.write_bytes(raw)
    return files


def test_an_identity_is_the_same_in_headers_and_results(tmp_path: Path) -> None:
    _, text, raw = EXAMPLES["Chinese"]
    files = written(tmp_path / "s", "\\ISO 2022 IR 58", raw)
    read: Dataset = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert header.text(read, "PatientName") == text
    assert str(normalised_header(read).PatientName) == text
    assert convert_series(only_series(tmp_path / "s"), tmp_path / "v.nii.gz").warnings == ()


def test_an_identity_that_does_not_fit_its_label_is_said(tmp_path: Path) -> None:
    written(tmp_path / "s", "ISO_IR 192", b"J\xe9r\xf4me")
    [said] = convert_series(only_series(tmp_path / "s"), tmp_path / "v.nii.gz").warnings
    assert said.startswith("PatientName does not fit its character set (ISO_IR 192)")
    assert config.settings.reading_validation_mode != config.RAISE


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("Doe^Jane", "Doe, Jane"),
        ("Doe^Jane^Ann^Dr^MSc", "Doe, Jane Ann, Dr, MSc"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田, 太郎) (やまだ, たろう)"),
        ("=山田^太郎", "山田, 太郎"),
        ("DOE", "DOE"),
        ("^Jane", "Jane"),
        ("", ""),
        ("^", "^"),
        ("A^B^C^D^E^F", "A, B C, D, E F"),
    ],
)
def test_names_are_shown_as_people_write_them(name: str, readable: str) -> None:
    assert header.readable_name(name) == readable
