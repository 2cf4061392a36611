"""Errors of the daemon, named by what the caller does about them.

DaemonError
├── Rejected      the input cannot be reported; never tried again
├── Retryable     the same call may succeed later
│   └── DiskFull             once there is room again
└── Permanent     tried as often as allowed, or known never to succeed
    └── ConfigurationError   the configuration is wrong (exit code 2)
"""

from __future__ import annotations


class DaemonError(Exception):
    """Base of all errors that the daemon raises on purpose; the text is fit for a user."""


class Rejected(DaemonError):
    """The input is sound DICOM, perhaps, but nothing that can be reported; set aside with this reason."""


class Retryable(DaemonError):
    """A passing failure: the caller tries again, with back-off, as often as its policy allows."""


class DiskFull(Retryable):
    """There is no room on the disk: the caller tries again once there is."""


class Permanent(DaemonError):
    """A failure that no retry mends; the job is set aside with this reason."""


class ConfigurationError(Permanent):
    """The configuration is unusable; every fault that was found is in the text."""
