"""The boxes of the model's figure, one file each."""
