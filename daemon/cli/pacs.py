"""`braingemma send` and `echo`: a DICOM client."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.terminal import ConfigOption, JsonOption, data, emit_json, messages, working
from daemon.config.load import load_settings
from daemon.deliver.outgoing import Outgoing, StoreOutcome
from daemon.errors import DaemonError
from dicom_io.errors import DicomIoError
from dicom_io.files import files_below


def send(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, any nesting.")],
    to: Annotated[str, typer.Option(help="AET@HOST:PORT")],
    calling_aet: Annotated[str, typer.Option(help="Our AE title.")] = "BRAINGEMMA",
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Send pseudonyms, other UIDs and shifted dates (PS3.15 basic profile).")
    ] = False,
    deface: Annotated[
        bool, typer.Option("--deface", help="Send heads without their faces; what is not surely without is not sent.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files by C-STORE."""
    from daemon.deliver.dimse import DimseClient, parse_peer

    peer = parse_peer(to)
    files, unlooked = files_below(folder) if folder.is_dir() else ([folder], [])
    if not files or not folder.exists():
        raise DaemonError(f"{folder}: expected DICOM files, found none")
    with contextlib.ExitStack() as kept, working(f"sending to {peer}") as say:
        originals = {file: file for file in files}
        unread = [f"{path}: {why}" for path, why in unlooked]
        changed = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="braingemma-send-")))
        if deface:
            from daemon.deliver.defaced import without_faces

            originals, refused = without_faces(files, folder if folder.is_dir() else folder.parent, changed, say)
            unread += refused
        if deidentify:
            key = load_settings(config).pseudonym_key
            originals, unread = _deidentified(originals, changed, key, unread, faces_removed=deface)
        outgoing = _readable(originals, unread)
        outcomes: list[StoreOutcome] = []

        def note(outcome: StoreOutcome) -> None:
            outcomes.append(outcome)
            say(f"sent {len(outcomes)}/{len(outgoing)}")

        DimseClient(peer, calling_aet).store(outgoing, on_outcome=note)
    failed = [f"{originals[o.outgoing.path]}: {o.reason}" for o in outcomes if not o.stored] + unread
    stored = sum(o.stored for o in outcomes)
    if as_json:
        emit_json({"stored": stored, "failed": failed})
    else:
        data.print(f"{stored} instances stored at {peer}")
    for line in failed:
        messages.print(line, style="red", markup=False)
    if failed:
        raise DaemonError(f"{len(failed)} of {len(files)} files were not stored at {peer}")


def _readable(files: Iterable[Path], unread: list[str]) -> list[Outgoing]:
    """What can be sent; why others cannot is added to `unread`."""
    outgoing = []
    for file in files:
        try:
            outgoing.append(Outgoing.read(file))
        except DaemonError as error:
            unread.append(str(error))
    return outgoing


def _deidentified(
    files: dict[Path, Path], folder: Path, key: Path, refused: list[str], *, faces_removed: bool
) -> tuple[dict[Path, Path], list[str]]:
    """De-identified copies in a folder, each with its original, and why others have none, after those before."""
    from dicom_io.deidentify import Deidentifier, deidentify_file, load_key

    deidentifier = Deidentifier(load_key(key), faces_removed)
    originals: dict[Path, Path] = {}
    refused = list(refused)
    for number, (file, original) in enumerate(files.items(), start=1):
        target = folder / f"{number:06d}.dcm"
        try:
            deidentify_file(deidentifier, file, target)
        except DicomIoError as error:
            refused.append(f"{original}: not sent: {error}")
        else:
            originals[target] = original
    return originals, refused


def echo(
    peer: Annotated[str, typer.Argument(help="AET@HOST:PORT")],
    calling_aet: Annotated[str | None, typer.Option(help="Our AE title.", show_default="[listener] ae_title")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """C-ECHO: is the peer there, and does it talk to us."""
    from daemon.deliver.dimse import DimseClient, parse_peer

    DimseClient(parse_peer(peer), calling_aet or load_settings(config).listener.ae_title).echo()
    if as_json:
        emit_json({"peer": peer, "answers": True})
    else:
        data.print(f"{peer} answers")
