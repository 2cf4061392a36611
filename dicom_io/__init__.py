"""DICOM in and out: series to RAS NIfTI with validated geometry, and result objects back. No torch here."""
