"""Back-pressure: the assembler tells the receiver processes that the pipeline is behind.

The sign is a file beside the segments, as the receivers are processes of their own. New associations are then refused
as temporary congestion (PS3.8 Table 9-21), upon which a sender tries again later. An association that is open goes on,
so that no study is cut in half; what it may bring is bounded by `storage.min_free_gb`.
"""

from __future__ import annotations

import os
from pathlib import Path

_SIGN = "behind"


def set_behind(spool: Path, *, behind: bool) -> bool:
    """Put the sign up or take it down; whether that changed anything."""
    sign = spool / _SIGN
    if behind is sign.exists():
        return False
    if behind:
        os.close(os.open(sign, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    else:
        sign.unlink()
    return True


def is_behind(spool: Path) -> bool:
    """Whether new associations are to be refused for now."""
    return (spool / _SIGN).exists()
