"""The data folder: where each thing lies."""

from __future__ import annotations

STATUS_FILE = "service.json"
"""In the data folder: pid and ports of the running service."""
