"""Errors of `training`; each text names what was expected and what came.

TrainingError
├── SettingsError   a training configuration that cannot be used (ValueError too)
├── DataError       cases that are missing, broken, or in two splits; all of them at once
└── ResumeError     a run folder that does not fit this configuration
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of all errors raised on purpose by `training`; the text is fit for a user."""


class SettingsError(TrainingError, ValueError):
    """A configuration value is missing, unknown or out of range."""


class DataError(TrainingError):
    """Training data is missing, broken or inconsistent."""


class ResumeError(TrainingError):
    """A run cannot go on from what its folder holds."""
