"""Whether a picture is what the model was made for."""
