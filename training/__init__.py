"""How the model is trained and measured: phantoms, data sets, the three phases, evaluation. No DICOM here."""
