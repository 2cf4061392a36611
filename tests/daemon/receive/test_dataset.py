from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_support import encode, make_series
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from daemon.receive.dataset import DEFLATED, EXPLICIT_BIG, IMPLICIT_LITTLE, DatasetError, Identity, read_identity

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
SHARED = Path(__file__).parents[4] / "shared" / "data" / "dicom"


def with_sequences() -> Dataset:
    """An instance with nested sequences before the UIDs, as Enhanced MR and de-identified instances have them."""
    dataset = make_series(1)[0]
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "study uid 0020000D inside"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    outer.StudyInstanceUID = "9.9.9"
    dataset.ReferencedImageSequence = Sequence([outer, Dataset()])
    dataset.add_new(0x00091010, "UN", b"private")
    return dataset


def as_bytes(dataset: Dataset, *, implicit: bool, little: bool, undefined: bool) -> bytes:
    if undefined:
        for element in dataset.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = little, implicit
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def identity_of(dataset: Dataset) -> Identity:
    return Identity(dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    ("syntax", "implicit", "little"),
    [(IMPLICIT_LITTLE, True, True), (EXPLICIT_LITTLE, False, True), (EXPLICIT_BIG, False, False)],
)
def test_uids_are_read_in_every_encoding(syntax, implicit, little, undefined):
    dataset = with_sequences()
    data = as_bytes(dataset, implicit=implicit, little=little, undefined=undefined)
    for form in (data, bytearray(data), memoryview(data)):
        assert read_identity(form, syntax) == identity_of(dataset)


def test_a_deflated_data_set_is_read():
    dataset = with_sequences()
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = deflater.compress(encode(dataset)) + deflater.flush()
    assert read_identity(data, DEFLATED) == identity_of(dataset)


def test_a_deflate_bomb_is_refused_with_little_memory():
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(b"\x08\x00\x05\x00CS\x00\x00" * (1 << 21)) + deflater.flush()
    with pytest.raises(DatasetError):
        read_identity(bomb, DEFLATED)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared test data beside the checkout")
def test_agrees_with_pydicom_on_real_files():
    checked = 0
    for path in sorted(SHARED.rglob("*")):
        if not path.is_file():
            continue
        try:
            dataset = dcmread(path, stop_before_pixels=True)
            behind_meta = 144 + dataset.file_meta.FileMetaInformationGroupLength
        except (InvalidDicomError, AttributeError):
            continue
        data = memoryview(path.read_bytes())[behind_meta:]
        assert read_identity(data, dataset.file_meta.TransferSyntaxUID) == identity_of(dataset), path
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_missing_uid_is_named(keyword):
    dataset = make_series(1)[0]
    data_with = encode(dataset)
    delattr(dataset, keyword)
    with pytest.raises(DatasetError, match=keyword):
        read_identity(encode(dataset), EXPLICIT_LITTLE)
    assert read_identity(data_with, EXPLICIT_LITTLE)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.3\n", "", "1" * 65])
def test_what_is_no_uid_is_refused(uid):
    """UIDs become file names."""
    dataset = make_series(1)[0]
    raw = encode(dataset)
    old = dataset.SeriesInstanceUID.encode()
    new = uid.encode() + b"\0" * (len(uid) % 2)
    padded = old + b"\0" * (len(old) % 2)
    at = raw.index(padded)
    changed = raw[: at - 2] + len(new).to_bytes(2, "little") + new + raw[at + len(padded) :]
    with pytest.raises(DatasetError, match="SeriesInstanceUID"):
        read_identity(changed, EXPLICIT_LITTLE)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_data_sets_are_read_or_refused_never_anything_else(data):
    raw = bytearray(data.draw(st.sampled_from(ENCODED)))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 800)))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    syntax = data.draw(st.sampled_from([IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED]))
    try:
        identity = read_identity(bytes(raw), syntax)
    except DatasetError:
        return
    assert all(re.fullmatch(r"[\w-][\w.-]{0,63}", uid, re.ASCII) for uid in vars(identity).values()), (
        "fit for file names"
    )


ENCODED = [
    as_bytes(with_sequences(), implicit=implicit, little=little, undefined=undefined)
    for implicit, little in ((True, True), (False, True), (False, False))
    for undefined in (True, False)
]
