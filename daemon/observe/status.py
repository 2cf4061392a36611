"""`service.json`: the running service's process and ports, for whoever asks from outside; gone when it has ended."""

from __future__ import annotations

from typing import ClassVar, Self

import psutil

from daemon.config.data_folder import DataFolder
from daemon.record import Record


class ServiceStatus(Record):
    """Process and ports; no web port where the page is switched off."""

    what: ClassVar[str] = "the state of the running service"

    pid: int
    dicom_port: int
    web_port: int | None = None

    @classmethod
    def of_running(cls, data: DataFolder) -> Self | None:
        """That of the service that works in a data folder; None where none does.

        Raises:
            Permanent: the file is damaged.
        """
        status = cls.read_if_there(data.status)
        return status if status is not None and psutil.pid_exists(status.pid) else None
