"""Synthetic FLAIR heads with lesions and their truth."""
