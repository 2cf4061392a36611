"""The model: RAS NIfTI in, report, findings and saliency out. No DICOM here."""
