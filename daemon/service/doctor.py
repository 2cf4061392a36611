"""`braingemma doctor`: is this machine ready for this configuration."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import socket
import sqlite3
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import psutil
import sqlalchemy as sa
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from braingemma.checkpoint.weights import WEIGHT_SUFFIXES, find_folder
from braingemma.errors import BrainGemmaError
from daemon.config.load import without_password
from daemon.config.sections import Destination, Settings
from daemon.database.engine import check_database, database_url, make_engine
from daemon.deliver.client import client_for
from daemon.errors import ConfigurationError, DaemonError, Permanent
from daemon.observe.status import ServiceStatus
from daemon.pull.client import client_of
from dicom_io.content.kind import ResultKind
from dicom_io.objects.kinds import KINDS, REJECTION

CARD_GPU_GB = 16
"""GPU memory that the model card asks for."""

LARGE_GB = 2.0
"""Weights of this size or more are a model as the card means it; smaller ones, as the demo, run anywhere."""

LEAST_MEMORY_GB = 4
"""Main memory for the service and the demo weights."""

CARD_MEMORY_GB = 16
"""Main memory for a model as the card means it: 11.5 GB were measured on a CPU, by `braingemma bench generate`."""

GB = 1e9


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str


def examine(settings: Settings, say: Callable[[str], None] = lambda _: None) -> Iterator[Check]:
    """Look at everything that `serve` will need, one check after the other; `say` is told what is looked at."""
    looks: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        _weights, _device, _memory, _four_bit, _codecs, _disk, _ports, _page, _peers, _certificates, _database, _shared,
        _destinations, _sources, _tools,
    )  # fmt: skip
    for look in looks:
        say(f"looking at {look.__name__.strip('_').replace('_', ' ')}")
        yield from look(settings)


def _weights(settings: Settings) -> Iterator[Check]:
    from daemon.service.wiring import check_weights

    try:
        info = check_weights(settings)
    except (ConfigurationError, BrainGemmaError) as error:
        yield Check("weights", False, str(error))
    else:
        note = f"; {info.banner}" if info.banner else ""
        yield Check("weights", True, f"{info.name} {info.version}, {info.format}, sha256 {info.sha256[:16]}{note}")


def _device(settings: Settings) -> Iterator[Check]:
    import torch

    wanted, large = settings.model.device, _weights_gb(settings) >= LARGE_GB
    asks = f"the model card asks for a GPU with {CARD_GPU_GB} GB" if large else "these weights are small"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / GB
        enough = not large or wanted == "cpu" or memory >= CARD_GPU_GB * 0.95
        yield Check("device", enough, f"{torch.cuda.get_device_name(0)}, {memory:.1f} GB; {asks}")
        return
    # Who writes device = "cpu" has chosen minutes for each report; "auto" on a machine without a GPU may be a mistake.
    enough = wanted == "cpu" or (wanted == "auto" and not large)
    hint = (
        ""
        if enough
        else ('; set [model] device = "cpu" to do without' if wanted == "auto" else '; got device = "cuda"')
    )
    yield Check(
        "device", enough, f"no CUDA device; {os.cpu_count()} CPU cores, torch {torch.__version__}; {asks}{hint}"
    )


def _memory(settings: Settings) -> Iterator[Check]:
    least = CARD_MEMORY_GB if _weights_gb(settings) >= LARGE_GB else LEAST_MEMORY_GB
    total = psutil.virtual_memory().total / GB
    yield Check("memory", total >= 0.95 * least, f"{total:.1f} GB; expected at least {least} GB")


def _weights_gb(settings: Settings) -> float:
    """Size of the configured weights, GB; 0 where there are none, which the first check says."""
    try:
        folder = find_folder(settings.model.weights)
    except BrainGemmaError:
        return 0.0
    return sum(f.stat().st_size for f in folder.rglob("*") if f.suffix in WEIGHT_SUFFIXES) / GB


def _four_bit(settings: Settings) -> Iterator[Check]:
    if settings.model.quantization == "none":
        yield Check("4-bit", True, "not asked for")
        return
    try:
        import bitsandbytes
        import torch

        from braingemma.quantize import few_rows

        weight = torch.randn(64, 64)
        packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        error = (bitsandbytes.functional.dequantize_4bit(packed, state) - weight).abs().mean().item()
    except (ImportError, RuntimeError, OSError) as fault:
        yield Check("4-bit", False, f"bitsandbytes does not work here: {fault}")
    else:
        library = few_rows.few_rows()
        on_cpu = "slow (no compiled library for it)" if library is None else few_rows.LEVELS[library.level]
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
    low = settings.storage.low_free_gb
    if low:
        yield Check(
            "disk watermark", low > least, f"delivered jobs go below {low:g} GB; expected more than {least:g} GB"
        )
    if not folder.exists():
        yield Check("data folder", os.access(there, os.W_OK), f"{folder} will be made")
        return
    mode = folder.stat().st_mode & 0o777
    private = mode & 0o077 == 0
    wanted = "" if private else f", mode {mode:04o}: expected 0700, patients' data lie in it"
    yield Check("data folder", private and os.access(folder, os.W_OK), f"{folder} exists{wanted}")


def _ports(settings: Settings) -> Iterator[Check]:
    yield _can_bind("port", settings, settings.listener.host, settings.listener.port)


def _page(settings: Settings) -> Iterator[Check]:
    web = settings.web
    if not web.enabled:
        yield Check("page", True, "switched off")
        return
    yield _can_bind("page", settings, web.host, web.port)
    guards = [name for name, there in (("token", web.token.get_secret_value()), ("proxy", web.user_header)) if there]
    yield Check("page guarded by", True, " and ".join(guards) or "loopback: every user of this machine may see it")


def _peers(settings: Settings) -> Iterator[Check]:
    listener = settings.listener
    if not listener.allowed_peers:
        yield Check("senders", True, "every AE title may send (listener.allowed_peers is empty)")
    for peer in listener.allowed_peers:
        try:
            found = socket.getaddrinfo(peer.host, None) if peer.host else []
        except OSError as error:
            yield Check(f"sender {peer.ae_title}", False, f"{peer.host!r} cannot be resolved: {error.strerror}")
        else:
            where = ", ".join(sorted({str(entry[4][0]) for entry in found})) or "any address"
            yield Check(f"sender {peer.ae_title}", True, f"may send from {where}")


def _certificates(settings: Settings) -> Iterator[Check]:
    ends = [("listener", settings.listener.tls), *((d.name, d.tls) for d in settings.destinations)]
    for name, tls in ends:
        if tls is None:
            continue
        try:
            if tls.cert is not None:
                ssl.create_default_context().load_cert_chain(tls.cert, tls.key)
            if tls.ca is not None:
                ssl.create_default_context(cafile=str(tls.ca))
        except (OSError, ssl.SSLError) as error:
            yield Check(f"TLS of {name}", False, f"{tls.cert}, {tls.key}, {tls.ca}: {error}")
        else:
            yield Check(f"TLS of {name}", True, f"{tls.cert or tls.ca} can be used")


def _database(settings: Settings) -> Iterator[Check]:
    url = settings.engine.database_url
    if not url:
        yield _sqlite(settings)
        return
    engine = make_engine(database_url(url, settings.data))
    try:
        with engine.connect() as connection:
            version = connection.execute(sa.text("SHOW server_version")).scalar_one()
    except sa.exc.SQLAlchemyError as error:
        yield Check("database", False, f"{without_password(url)}: {str(error).splitlines()[0]}")
    else:
        yield Check("database", True, f"PostgreSQL {version} answers")
    finally:
        engine.dispose()


def _sqlite(settings: Settings) -> Check:
    path = settings.data.database
    if not path.exists():
        return Check("database", True, f"SQLite {sqlite3.sqlite_version}; {path} will be made")
    engine = make_engine(database_url("", settings.data))
    try:
        check_database(engine)
    except Permanent as error:
        return Check("database", False, str(error))
    except sa.exc.SQLAlchemyError as error:
        return Check("database", False, f"{path}: {str(error).splitlines()[0]}")
    finally:
        engine.dispose()
    return Check("database", True, f"SQLite {sqlite3.sqlite_version}; {path} is sound")


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


def _can_bind(name: str, settings: Settings, host: str, port: int) -> Check:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            running = _running_service(settings)
            if running is not None and error.errno == errno.EADDRINUSE:
                return Check(name, True, f"{host}:{port} is in use, and the service runs (process {running})")
            return Check(name, False, f"{host}:{port} cannot be bound: {error.strerror}")
    return Check(name, True, f"{host}:{port} is free")


def _running_service(settings: Settings) -> int | None:
    """Process of the service that works in the data folder; None where none does."""
    status = ServiceStatus.of_running(settings.data)
    return None if status is None else status.pid


def _destinations(settings: Settings) -> Iterator[Check]:
    for destination in settings.destinations:
        client = client_for(destination, settings.listener.ae_title)
        kinds = sent_kinds(settings, destination)
        try:
            client.echo()
            refused = client.refuses([str(kind.sop_class_uid) for kind in kinds])
        except DaemonError as error:
            yield Check(f"destination {destination.name}", False, str(error))
            continue
        said = f"{destination.address} answers {client.sign_of_life}"
        lacking = [kind for kind in kinds if kind.sop_class_uid in refused]
        if lacking:
            names = ", ".join(f"{UID(kind.sop_class_uid).name} ({kind.name})" for kind in lacking)
            said += f", but does not take {names}: switch that off in [results], or teach it the SOP class"
        elif destination.stow_url is None:
            said += f", and takes all {len(kinds)} SOP classes that will be sent"
        yield Check(f"destination {destination.name}", not lacking, said)


def sent_kinds(settings: Settings, destination: Destination) -> list[ResultKind]:
    """Kinds of results that go to a destination by this configuration."""
    wanted = [kind for kind in KINDS if getattr(settings.results, kind.name, False)]
    return [*wanted, *([REJECTION] if destination.reject_replaced else [])]


def _sources(settings: Settings) -> Iterator[Check]:
    for source in settings.sources:
        name = f"source {source.name}"
        try:
            client_of(settings, source).echo()
        except DaemonError as error:
            yield Check(name, False, str(error))
        else:
            yield Check(name, True, f"{source.address} answers {'QIDO-RS' if source.url else 'and takes C-FIND'}")


def _tools(_settings: Settings) -> Iterator[Check]:
    kernels = importlib.util.find_spec("kernels")
    yield Check("package kernels", kernels is None, "absent, as it should be" if kernels is None else
                "installed: bitsandbytes would download native code through it; remove it")  # fmt: skip
    dciodvfy = shutil.which("dciodvfy") or str(Path(sys.executable).parent / "dciodvfy")
    found = Path(dciodvfy).exists()
    yield Check("dciodvfy", True, dciodvfy if found else "not installed: results are checked by our own rules only")
