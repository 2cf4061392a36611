from __future__ import annotations

import pytest
from ingest_support import encode, make_series
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from daemon.assemble.part10 import part10_head


@pytest.mark.parametrize("calling_aet", ["ORTHANC", "ODD", "SIXTEEN_LETTERS_"])
def test_a_head_and_a_data_set_make_a_dicom_file(calling_aet):
    dataset = make_series(1)[0]
    head = part10_head(
        sop_class_uid=dataset.SOPClassUID,
        sop_uid=dataset.SOPInstanceUID,
        transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
        calling_aet=calling_aet,
    )
    read = dcmread(DicomBytesIO(head + encode(dataset)))
    assert read == dataset
    meta = read.file_meta
    assert meta.MediaStorageSOPClassUID == dataset.SOPClassUID
    assert meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID
    assert meta.SourceApplicationEntityTitle == calling_aet
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.FileMetaInformationGroupLength == len(head) - 132 - 12
    assert meta.ImplementationClassUID
