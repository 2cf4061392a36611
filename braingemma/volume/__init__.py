"""A NIfTI file to the tensor that the model reads."""
