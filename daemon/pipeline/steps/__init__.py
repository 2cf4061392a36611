"""One file for each step of a job: the only place that knows both `dicom_io` and `braingemma`."""
