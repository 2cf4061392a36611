"""Errors of `braingemma`; each text names what was expected and what came.

BrainGemmaError
├── VolumeError       a NIfTI volume that cannot be reported (ValueError too)
├── CheckpointError   weights that are damaged, partial or do not fit
├── GenerationError   the model could not write or score a report
└── ExplainError      an explanation could not be made
"""

from __future__ import annotations


class BrainGemmaError(Exception):
    """Base of all errors raised on purpose by `braingemma`; the text is fit for a user."""


class VolumeError(BrainGemmaError, ValueError):
    """The volume is not one finite 3D brain image of sensible size."""


class CheckpointError(BrainGemmaError):
    """Weights are missing, damaged or of another shape; the text names the file and the key."""


class GenerationError(BrainGemmaError):
    """The language model could not write or score a report."""


class ExplainError(BrainGemmaError):
    """An explanation could not be computed or drawn."""
