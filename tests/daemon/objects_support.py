"""Steps that need no time and leave one object to be delivered."""

from __future__ import annotations

from steps_support import QUICK_STEPS

_ENCODE = r"""
        elif step == "encode":
            from pathlib import Path
            from pydicom import Dataset, dcmread
            from pydicom.dataset import FileMetaDataset
            from pydicom.uid import ExplicitVRLittleEndian, generate_uid
            from dicom_io.pack.manifest import Pack, PackObject, save_manifest
            first = dcmread(sorted(folder.input.iterdir())[0], stop_before_pixels=True)
            report = Dataset()
            report.file_meta = FileMetaDataset()
            report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
            report.SOPInstanceUID = generate_uid(entropy_srcs=[folder.root.name])
            report.file_meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
            report.SeriesInstanceUID = generate_uid(entropy_srcs=[folder.root.name, "series"])
            report.StudyInstanceUID, report.PatientID = first.StudyInstanceUID, first.PatientID
            report.Modality, report.InstanceNumber = "SR", len(list(folder.input.iterdir()))
            folder.dicom.mkdir(exist_ok=True)
            path = folder.dicom / "sr.dcm"
            report.save_as(path, enforce_file_format=True)
            uids = (report.SOPClassUID, report.SOPInstanceUID, report.SeriesInstanceUID)
            made = PackObject(path, "sr", *map(str, uids))
            save_manifest(folder.dicom, Pack((made,), folder.root.name, str(report.StudyInstanceUID), False))
"""

_BEGIN = '        elif step == "encode":\n'
OBJECT_STEPS = (
    QUICK_STEPS[: QUICK_STEPS.index(_BEGIN)] + _ENCODE.lstrip("\n") + "        self.progress(1, 1, 'working')\n"
)
"""Each job leaves an SR that names its study; Instance Number says of how many images it is."""
