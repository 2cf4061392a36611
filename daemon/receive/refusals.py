"""What is refused to senders, for the service's log and for the audit log.

The audit log is never rewritten, so what a stranger can make it grow by is bounded: the same refusal of the same sender
is noted once a minute, and no more than sixty lines a minute by one receiver. What is left out is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from daemon.observe.audit import AuditLog
from daemon.receive.store import Refusal

log = logging.getLogger(__name__)

SECONDS = 60.0
LINES = 60
"""At most so many lines in so many seconds."""


@dataclass(eq=False)
class RefusalLog:
    """Notes refusals; safe to use from all threads of a receiver.

    Args:
        audit: The daemon's audit log; None: only the service's log.
    """

    audit: AuditLog | None = None
    _noted: dict[tuple[str, ...], float] = field(default_factory=dict)
    """Monotonic time of the lines of the last minute."""
    _left_out: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def association(self, refusal: Refusal, *, calling_aet: str, called_aet: str, peer: str) -> None:
        """An A-ASSOCIATE-RJ."""
        log.warning("association from %r at %s refused: %s", calling_aet, peer, refusal.text)
        code = f"{refusal.result}/{refusal.source}/{refusal.reason}"
        self._note(calling_aet=calling_aet, called_aet=called_aet, peer=peer, code=code, why=refusal.text)

    def contexts(self, abstract_syntaxes: Iterable[str], *, calling_aet: str, peer: str) -> None:
        """Presentation contexts that are not accepted."""
        refused = ", ".join(sorted(set(abstract_syntaxes)))
        if refused:
            log.warning("presentation contexts of %r at %s refused: %s", calling_aet, peer, refused)
            self._note(calling_aet=calling_aet, peer=peer, presentation_contexts=refused)

    def _note(self, **facts: Any) -> None:
        if self.audit is None:
            return
        with self._lock:
            now = time.monotonic()
            self._noted = {key: noted for key, noted in self._noted.items() if now - noted < SECONDS}
            if tuple(facts.values()) in self._noted or len(self._noted) >= LINES:
                self._left_out += 1
                return
            self._noted[tuple(facts.values())] = now
            left_out, self._left_out = self._left_out, 0
        self.audit.note("refused", **facts, left_out_before=left_out)
