"""`braingemma doctor`: is this machine ready for this configuration."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import sqlalchemy as sa
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from braingemma.errors import BrainGemmaError
from daemon import scu, stow
from daemon.config import Settings, without_password
from daemon.confirmation import peer_of
from daemon.database import database_url, make_engine
from daemon.errors import ConfigurationError, DaemonError
from daemon.receiver_negotiation import Incompatible, self_check

CARD_GPU_GB = 16
"""GPU memory that the model card asks for."""

GB = 1e9


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str


def examine(settings: Settings) -> Iterator[Check]:
    """Look at everything that `serve` will need, one check after the other."""
    looks: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        _weights, _device, _four_bit, _codecs, _disk, _port, _page, _database, _shared, _receiver, _destinations,
        _tools,
    )  # fmt: skip
    for look in looks:
        yield from look(settings)


def _weights(settings: Settings) -> Iterator[Check]:
    from daemon.service import check_weights

    try:
        info = check_weights(settings)
    except (ConfigurationError, BrainGemmaError) as error:
        yield Check("weights", False, str(error))
    else:
        note = f"; {info.banner}" if info.banner else ""
        yield Check("weights", True, f"{info.name} {info.version}, {info.format}, sha256 {info.sha256[:16]}{note}")


def _device(settings: Settings) -> Iterator[Check]:
    import torch

    wanted = settings.model.device
    if not torch.cuda.is_available():
        yield Check(
            "device", wanted != "cuda", f"no CUDA device; {os.cpu_count()} CPU cores, torch {torch.__version__}"
        )
        return
    memory = torch.cuda.get_device_properties(0).total_memory / GB
    text = f"{torch.cuda.get_device_name(0)}, {memory:.1f} GB; the model card asks for {CARD_GPU_GB} GB"
    yield Check("device", wanted == "cpu" or memory >= CARD_GPU_GB * 0.95, text)


def _four_bit(settings: Settings) -> Iterator[Check]:
    if settings.model.quantization == "none":
        yield Check("4-bit", True, "not asked for")
        return
    try:
        import bitsandbytes
        import torch

        from braingemma import native

        weight = torch.randn(64, 64)
        packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        error = (bitsandbytes.functional.dequantize_4bit(packed, state) - weight).abs().mean().item()
    except (ImportError, RuntimeError, OSError) as fault:
        yield Check("4-bit", False, f"bitsandbytes does not work here: {fault}")
    else:
        library = native.few_rows()
        on_cpu = "slow (no compiled library for it)" if library is None else native.LEVELS[library.level]
        text = f"bitsandbytes {bitsandbytes.__version__}, NF4 round trip error {error:.3f}; on a CPU: {on_cpu}"
        yield Check("4-bit", error < 0.2, text)


def _codecs(_settings: Settings) -> Iterator[Check]:
    for name, syntax in (
        ("JPEG lossless", JPEGLosslessSV1),
        ("JPEG-LS", JPEGLSLossless),
        ("JPEG 2000", JPEG2000Lossless),
        ("RLE", RLELossless),
    ):
        decoder = get_decoder(syntax)
        detail = ", ".join(decoder.available_plugins) or "; ".join(decoder.missing_dependencies)
        yield Check(f"codec {name}", decoder.is_available, detail)


def _disk(settings: Settings) -> Iterator[Check]:
    folder = settings.storage.folder
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free / GB
    least = settings.storage.min_free_gb
    yield Check("disk", free > least, f"{free:.1f} GB free at {there}; the listener stops taking below {least:g} GB")
    yield Check("data folder", os.access(there, os.W_OK), f"{folder} {'exists' if folder.exists() else 'will be made'}")


def _port(settings: Settings) -> Iterator[Check]:
    yield _can_bind("port", settings.listener.host, settings.listener.port)


def _page(settings: Settings) -> Iterator[Check]:
    web = settings.web
    if not web.enabled:
        yield Check("page", True, "switched off")
        return
    yield _can_bind("page", web.host, web.port)
    guards = [name for name, there in (("token", web.token.get_secret_value()), ("proxy", web.user_header)) if there]
    yield Check("page guarded by", True, " and ".join(guards) or "loopback: every user of this machine may see it")


def _database(settings: Settings) -> Iterator[Check]:
    url = settings.engine.database_url
    if not url:
        yield Check("database", True, f"SQLite {sqlite3.sqlite_version} in the data folder")
        return
    engine = make_engine(database_url(url, settings.storage.folder))
    try:
        with engine.connect() as connection:
            version = connection.execute(sa.text("SHOW server_version")).scalar_one()
    except sa.exc.SQLAlchemyError as error:
        yield Check("database", False, f"{without_password(url)}: {str(error).splitlines()[0]}")
    else:
        yield Check("database", True, f"PostgreSQL {version} answers")
    finally:
        engine.dispose()


def _shared(settings: Settings) -> Iterator[Check]:
    url = settings.storage.shared_url
    if not url:
        return
    try:
        storage, base = fsspec.core.url_to_fs(url)
        probe = f"{base.rstrip('/')}/.doctor-{os.getpid()}"
        storage.makedirs(base, exist_ok=True)
        with storage.open(probe, "wb") as file:
            file.write(b"doctor")
        read = storage.cat_file(probe)
        storage.rm(probe)
    except (OSError, ImportError, ValueError) as error:
        yield Check("shared storage", False, f"{url}: {error}")
    else:
        yield Check("shared storage", read == b"doctor", f"{url} takes files and gives them back")


def _receiver(_settings: Settings) -> Iterator[Check]:
    try:
        self_check()
    except Incompatible as error:
        yield Check("receiver", True, f"pynetdicom's own reactor, slower: {error}")
    else:
        yield Check("receiver", True, "the quick one fits this release of pynetdicom")


def _can_bind(name: str, host: str, port: int) -> Check:
    address = (host, port)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return Check(name, False, f"{host}:{port} cannot be bound: {error.strerror}")
    return Check(name, True, f"{host}:{port} is free")


def _destinations(settings: Settings) -> Iterator[Check]:
    for destination in settings.destinations:
        how = "C-ECHO" if destination.stow_url is None else "QIDO-RS"
        try:
            if destination.stow_url is None:
                scu.echo(peer_of(destination), settings.listener.ae_title)
            else:
                stow.echo(destination)
        except DaemonError as error:
            yield Check(f"destination {destination.name}", False, str(error))
        else:
            yield Check(f"destination {destination.name}", True, f"{destination.address} answers {how}")


def _tools(_settings: Settings) -> Iterator[Check]:
    kernels = importlib.util.find_spec("kernels")
    yield Check("package kernels", kernels is None, "absent, as it should be" if kernels is None else
                "installed: bitsandbytes would download native code through it; remove it")  # fmt: skip
    dciodvfy = shutil.which("dciodvfy") or str(Path(sys.executable).parent / "dciodvfy")
    found = Path(dciodvfy).exists()
    yield Check("dciodvfy", True, dciodvfy if found else "not installed: results are checked by our own rules only")
