"""The configuration: one frozen class per section, read in one place, every fault reported at once.

Order of precedence: environment (`BRAINGEMMA_SECTION__KEY`), then the TOML file, then the defaults below.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)
from urllib3.util import parse_url

from daemon.config.data_folder import DataFolder
from dicom_io.objects.kinds import KINDS

AE_TITLE = Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")
"""PS3.5 Table 6.2-1, VR AE: 16 characters at most, no backslash, no control characters."""

STOW_URL = r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?$"
"""Plain URLs only (RFC 3986): no user, no backslash, nothing that two programs could read in two ways."""

ENVIRONMENT_PREFIX = "BRAINGEMMA_"


LEAST_TOKEN = 16
"""Characters of `[web] token`."""


VIEWER_FIELDS = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "AccessionNumber")
"""Placeholders of `[web] viewer_url`."""


def is_loopback(host: str) -> bool:
    """Whether an address or name can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


def section_of(annotation: Any) -> type[Section] | None:
    """The section within the annotation of a key, such as `tuple[Destination, ...]` or `Tls | None`; None: a value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part)) is not None), None)


class Tls(Section):
    """Certificate files of one TLS end."""

    cert: Path
    """Certificate chain, PEM."""
    key: Path
    """Private key, PEM."""
    ca: Path | None = None
    """Authorities whose certificates the other side must show, PEM; with it TLS is mutual."""


class Peer(Section):
    """One application entity that may send to the listener."""

    ae_title: str = AE_TITLE
    """Its calling AE title."""
    host: str | None = None
    """Its address; None accepts the title from any address."""


class Listener(Section):
    """`[listener]`: who we are on the DICOM network and who may send."""

    ae_title: str = Field("BRAINGEMMA", min_length=1, max_length=16)
    """Our AE title; associations that call another are refused."""
    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = Field(11112, ge=0, le=65535)
    """TCP port; 0 lets the system choose one."""
    processes: int = Field(1, ge=1, le=16)
    """Receiver processes on the one listening socket."""
    allowed_peers: tuple[Peer, ...] = ()
    """Who may send; empty accepts every calling AE title."""
    storage_classes: tuple[str, ...] = ("all",)
    """Storage SOP classes that are taken: `all` of the standard, keywords such as `MRImageStorage`, and UIDs."""
    refused_storage_classes: tuple[str, ...] = ()
    """Of these, the ones that are refused all the same, named in the same way."""
    max_associations: int = Field(50, ge=1)
    """Associations at once, for each process."""
    idle_seconds: float = Field(60, gt=0)
    """An association that is silent this long is aborted."""
    max_pdu: int = Field(131072, ge=0)
    """Largest PDU that we receive, bytes; 0: unlimited."""
    reserve_mb: int = Field(512, ge=0)
    """Room in the spool that each process keeps prepared, MB: bursts of this size are acknowledged fastest."""
    replicate: Literal["none", "shared"] = "none"
    """`shared`: what came is acknowledged once a second copy lies under `storage.shared_url`, too, so that another
    receiver goes on where the disk of this one is lost."""
    tls: Tls | None = None
    """Present: associations must use TLS."""

    @field_validator("storage_classes", "refused_storage_classes")
    @classmethod
    def _are_known(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        if set(entries) - {"all"}:
            # Not on top: the dictionary of UIDs takes longer to load than all else that the command line needs.
            from daemon.config.storage_classes import resolve_storage_classes

            resolve_storage_classes(entries)
        return entries


class Assembly(Section):
    """`[assembly]`: when a study counts as complete."""

    quiet_seconds: float = Field(10, gt=0)
    """No instance of the study arrived for this long, and no association that sent one is open."""
    max_wait_seconds: float = Field(3600, gt=0)
    """An association that stays open cannot hold a study back for longer than this since its last instance."""
    max_waiting_jobs: int = Field(200, ge=1)
    """With so many jobs waiting, complete studies stay in the spool and new associations are refused for now."""


class Selection(Section):
    """`[selection]`: site rules beside the built-in ones."""

    report: Literal["best", "all"] = "best"
    """Of a study with several FLAIR series report the best, or each of them, as jobs of their own."""
    include: tuple[dict[str, str], ...] = ()
    """Rules {DICOM keyword: regular expression}; a series that matches one counts as named FLAIR."""
    exclude: tuple[dict[str, str], ...] = ()
    """Rules {DICOM keyword: regular expression}; a series that matches one is refused."""


class Patient(Section):
    """`[patient]`: what happens where a study's patient was corrected after the images came."""

    corrected: Literal["wait", "carry"] = "wait"
    """Results wait for a person (`braingemma jobs retry`), or carry the corrected identity at once."""


CheckPolicy = Literal["warn", "refuse", "off"]
"""What a failed check means: a sentence among the warnings, no report at all, or nothing, as it is not made."""


class Checks(Section):
    """`[checks]`: what a picture must look like before the model sees it."""

    brain: CheckPolicy = "warn"
    """There is a brain, and the standard brain can be laid over it."""
    coverage: CheckPolicy = "warn"
    """The whole head is in the picture."""
    noise: CheckPolicy = "warn"
    """Noise does not drown the brain."""
    contrast: CheckPolicy = "warn"
    """Fluid is dark, and white matter is not bright as on T1."""
    domain: CheckPolicy = "warn"
    """The picture is near those that the weights were trained on, where they state them."""


DECODING = (
    "max_new_tokens",
    "min_new_tokens",
    "temperature",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "seed",
    "speculate",
)
"""Keys of `[model]` that say how reports are written."""


class Model(Section):
    """`[model]`: which weights, on which device."""

    weights: str = "demo"
    """`demo`, a folder, or a hub id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    quantization: Literal["auto", "4bit", "none"] = "auto"
    """How the language model's weights are held in memory."""
    head_bits: Literal[16, 8] = 16
    """8: the output head in eight bits; quicker on a processor, and a report may read otherwise."""
    allow_demo: bool = False
    """Allow results of weights trained on synthetic images only to leave this machine."""
    max_new_tokens: int = Field(256, ge=1, le=4096)
    """Longest report, tokens."""
    min_new_tokens: int | None = Field(None, ge=0, le=4096)
    """Shortest report, tokens; not set: as the weights say, like the four that follow."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0: the likeliest token each time; above: tokens are drawn."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus of the drawing."""
    repetition_penalty: float | None = Field(None, gt=0)
    """Above 1 makes words that were written less likely."""
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    """No run of so many tokens is written twice; 0 allows all."""
    seed: int = Field(42, ge=0)
    """Of the drawing: the same study gives the same report."""
    candidates: int = Field(8, ge=1, le=64)
    """Texts at most, where the first contradicts classifier, map or ventricles; 1: it stays, with its warnings."""
    speculate: int = Field(0, ge=0, le=11)
    """Tokens guessed in each pass by earlier reports, on a processor, where nothing is drawn: the same text, sooner."""
    threads: int = Field(0, ge=0)
    """CPU threads of the model process; 0: all cores."""

    def decoding(self) -> dict[str, Any]:
        """How reports are written, where that is stated here and not by the weights."""
        stated = {name: getattr(self, name) for name in DECODING}
        return {name: value for name, value in stated.items() if value is not None}


class Explain(Section):
    """`[explain]`: the saliency map."""

    enabled: bool = True
    """Compute it."""
    samples: int = Field(100, ge=10)
    """Perturbed volumes at most; a balanced design of 20 supervoxels takes 48."""
    segments: int = Field(20, ge=2)
    """Supervoxels asked for."""
    cpu_minutes: float = Field(8, ge=0)
    """On a processor about the longest, by fewer supervoxels where a volume takes long; 0: whatever they take."""
    seed: int = Field(42, ge=0)
    """Seed of the perturbations."""
    method: Literal["kernelshap", "balanced", "lime", "leave_one_out"] = "balanced"
    """How perturbed volumes become weights; `braingemma bench explain` compares them."""
    replacement: Literal["mirror", "blur", "constant"] = "mirror"
    """What replaced tissue shows."""
    target: Literal["findings", "report"] = "findings"
    """What is drawn: the words that carry present findings, or every word."""
    batch_size: int = Field(0, ge=0)
    """Perturbed volumes in memory at once; 0: by the size of the model's grid."""


_SWITCHES: Any = {k.name: (bool, Field(k.by_default, description=k.meaning)) for k in KINDS if k.listed}


class Results(create_model("Switches", __base__=Section, **_SWITCHES)):  # type: ignore[misc]  # its fields are a table
    """`[results]`: which objects are made, and how."""

    deface: bool = False
    """The face is removed from the volume, and so from every result and picture; refused where that is not sure."""
    deidentify: bool = False
    """Results carry pseudonyms, other UIDs and shifted dates (PS3.15 basic profile) in place of the identities."""
    deidentify_key: Path | None = None
    """The secret from which pseudonyms follow; empty: `pseudonyms.key` in the data folder, made at first use."""


class ClientTls(Section):
    """How a destination is reached by TLS."""

    cert: Path | None = None
    """Our certificate chain, PEM; the other side may ask for one."""
    key: Path | None = None
    """Its private key, PEM."""
    ca: Path | None = None
    """Authorities whose certificates the other side must show, PEM; None: the system's."""

    @model_validator(mode="after")
    def _certificate_with_its_key(self) -> ClientTls:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key must be set together")
        return self


class Destination(Section):
    """One `[[destinations]]` entry: an AE for C-STORE, or a DICOMweb server for STOW-RS."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    """How the job list calls it."""
    ae_title: str | None = Field(None, min_length=1, max_length=16)
    """Called AE title, for C-STORE."""
    host: str | None = None
    """Its address, for C-STORE."""
    port: int | None = Field(None, ge=1, le=65535)
    """Its TCP port, for C-STORE."""
    stow_url: str | None = Field(None, pattern=STOW_URL)
    """Root of a DICOMweb server, such as `https://pacs.example/dicom-web`: STOW-RS in place of C-STORE."""
    username: str = ""
    """HTTP basic authentication, for STOW-RS."""
    password: SecretStr = SecretStr("")
    """Its password."""
    token: SecretStr = SecretStr("")
    """Bearer token, for STOW-RS, in place of a user name."""
    tls: ClientTls | None = None
    """Present: associate by TLS; with `https://`: the certificates to use."""
    associations: int = Field(1, ge=1, le=16)
    """Associations over which one study's results are sent at the same time; fewer where it refuses more."""
    max_attempts: int = Field(20, ge=1)
    """Attempts before the dead letter."""
    from_aets: tuple[str, ...] = ()
    """Only results of studies that one of these calling AE titles sent (`*` and `?` as in file names); empty: all."""
    confirm: Literal["auto", "query", "none"] = "auto"
    """After it accepted an object, make sure that it holds it: `auto` by storage commitment where it has that, else by
    C-FIND or QIDO-RS; `query` by the latter only; `none` believes the status."""
    commitment_seconds: float = Field(600, gt=0)
    """How long the answer to a request for storage commitment may take before we ask by C-FIND."""
    reject_replaced: bool = False
    """Tell it by a Key Object (IHE IOCM) to hide images that later results replace."""

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> Destination:
        address = {k: getattr(self, k) for k in ("ae_title", "host", "port")}
        if self.stow_url is not None:
            given = [k for k, value in address.items() if value is not None]
            if given:
                raise ValueError(
                    f"destination {self.name!r}: expected stow_url or an AE, got both ({', '.join(given)})"
                )
            if self.token.get_secret_value() and self.username:
                raise ValueError(f"destination {self.name!r}: expected token or username, got both")
            if self.associations > 1:
                raise ValueError(f"destination {self.name!r}: associations are for an AE only, not for stow_url")
            return self
        missing = [k for k, value in address.items() if value is None]
        if missing:
            raise ValueError(f"destination {self.name!r}: {', '.join(missing)} must be set, or stow_url")
        if self.username or self.token.get_secret_value():
            raise ValueError(f"destination {self.name!r}: username and token are for stow_url only")
        return self

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return self.stow_url or f"{self.ae_title}@{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        host = parse_url(self.stow_url).host if self.stow_url else self.host
        return is_loopback((host or "").strip("[]"))

    def takes(self, calling_aets: Iterable[str]) -> bool:
        """Whether results of a study from these senders go here."""
        senders = [aet.strip() for aet in calling_aets]
        return not self.from_aets or any(fnmatchcase(aet, rule) for aet in senders for rule in self.from_aets)


WINDOW = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
"""Two times of day, such as `19:00-06:00`."""


class Source(Section):
    """`[[sources]]`: a PACS from which `braingemma pull` fetches, by DIMSE or by DICOMweb."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    """How `braingemma pull --from` calls it."""
    ae_title: str | None = Field(None, min_length=1, max_length=16)
    """Called AE title, for C-FIND with C-MOVE or C-GET."""
    host: str | None = None
    """Its address, likewise."""
    port: int | None = Field(None, ge=1, le=65535)
    """Its TCP port, likewise."""
    url: str | None = Field(None, pattern=STOW_URL)
    """Root of a DICOMweb server, such as `https://pacs.example/dicom-web`: QIDO-RS and WADO-RS in their place."""
    username: str = ""
    """HTTP basic authentication, for DICOMweb."""
    password: SecretStr = SecretStr("")
    """Its password."""
    token: SecretStr = SecretStr("")
    """Bearer token, for DICOMweb, in place of a user name."""
    tls: ClientTls | None = None
    """Present: associate by TLS; with `https://`: the certificates to use."""
    retrieve: Literal["auto", "move", "get"] = "auto"
    """`move`: C-MOVE to our listener, as which the PACS must know us; `get`: C-GET; `auto`: C-GET where C-MOVE is not
    possible."""
    in_flight: int = Field(4, ge=1, le=100)
    """So many of its studies at most are fetched or wait for their report at once."""
    studies_per_hour: float = Field(0, ge=0)
    """At most so many studies are fetched in an hour, evenly; 0: no limit."""
    window: str = Field("", pattern=rf"^$|{WINDOW}")
    """Time of day, of this machine's clock, in which it may be asked, such as `19:00-06:00`; empty: always."""
    attempts: int = Field(5, ge=1)
    """A study that so often could not be fetched, though the PACS answered, has failed."""
    compare: bool = False
    """Look here for our own earlier reports of a patient of whom none is known, by C-GET or WADO-RS."""

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> Source:
        address = {k: getattr(self, k) for k in ("ae_title", "host", "port")}
        given = [k for k, value in address.items() if value is not None]
        if self.url is not None:
            if given:
                raise ValueError(f"source {self.name!r}: expected url or an AE, got both ({', '.join(given)})")
            if self.token.get_secret_value() and self.username:
                raise ValueError(f"source {self.name!r}: expected token or username, got both")
            if self.retrieve != "auto":
                raise ValueError(f"source {self.name!r}: retrieve is for an AE only")
        elif len(given) < len(address):
            missing = ", ".join(k for k in address if k not in given)
            raise ValueError(f"source {self.name!r}: {missing} must be set, or url")
        elif self.username or self.token.get_secret_value():
            raise ValueError(f"source {self.name!r}: username and token are for url only")
        if self.window and len(set(self.window.split("-"))) == 1:
            raise ValueError(f"source {self.name!r}: window: expected two different times, got {self.window!r}")
        return self

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return self.url or f"{self.ae_title}@{self.host}:{self.port}"


PriorityClass = Literal["urgent", "routine", "off-peak"]
"""How soon a study is worked on; see `daemon.jobs.priority`."""


class Rule(Section):
    """`[[rules]]`: how soon studies are worked on; of the rules that match a study the first counts."""

    priority: PriorityClass
    """`urgent`; `routine`, as what is sent to us; `off-peak`, as what is pulled."""
    calling_aet: str = ""
    """Studies that this calling AE title sent (`*` and `?` as in file names); empty: whoever, pulls too."""
    match: dict[str, str] = {}
    """{DICOM keyword: regular expression}, found anywhere, in either case; one series must match all of them."""

    @model_validator(mode="after")
    def _can_match(self) -> Rule:
        if not self.calling_aet and not self.match:
            raise ValueError("rule: expected calling_aet or match, got neither")
        for keyword, pattern in self.match.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"rule: {keyword} = {pattern!r}: {error}") from error
        if self.match:
            # Not on top: the dictionary takes long to load.
            from pydicom.datadict import tag_for_keyword

            unknown = [keyword for keyword in self.match if tag_for_keyword(keyword) is None]
            if unknown:
                raise ValueError(f"rule: {unknown[0]!r} is no DICOM keyword (such as StudyDescription)")
        return self


class Notice(Section):
    """One `[[notices]]` entry: a web address that is told what needs a person; notices name nobody."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    """How the log calls it."""
    url: SecretStr
    """Takes a POST of JSON with the key `text`, as chat services do; `https://`, or `http://` inside the site."""
    token: SecretStr = SecretStr("")
    """Sent as `Authorization: Bearer`; empty: none."""
    events: tuple[Literal["failed", "dead_letter", "silent_sender"], ...] = ("failed", "dead_letter", "silent_sender")
    """A job that failed; objects in a destination's dead letter; a sender that is due and sends nothing."""
    senders: tuple[str, ...] = ()
    """Calling AE titles that are expected to send."""
    silent_hours: float = Field(24, gt=0)
    """After so long without an instance a sender is silent."""
    max_attempts: int = Field(10, ge=1, le=100)
    """Attempts to tell one thing, with pauses that double up to an hour."""

    @field_validator("url")
    @classmethod
    def _is_plain_http(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            good = parts.scheme in ("http", "https") and parts.hostname and not parts.username and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError("expected https://HOST/PATH or http://HOST/PATH without a user name")
        return url


class Engine(Section):
    """`[engine]`: the durable workflows."""

    database_url: str = ""
    """Empty: SQLite in the data folder; `postgresql://...` for several hosts."""
    work: bool = True
    """Whether `serve` also works on studies; false where it only receives, and `braingemma worker` works elsewhere."""
    step_seconds: float = Field(3600, gt=0)
    """A step that shows no progress for so long is ended and tried again; after three such attempts the job is set
    aside.
    Health turns red when nothing that waits made progress for half of it."""
    lease_seconds: float = Field(30, ge=2)
    """Several hosts: a worker that is silent this long loses its work to another."""

    @model_validator(mode="after")
    def _work_for_others_needs_a_server(self) -> Engine:
        if not self.work and not self.database_url:
            raise ValueError("work = false needs database_url: workers on other hosts cannot open SQLite here")
        return self


class Storage(Section):
    """`[storage]`: where everything lies."""

    folder: Path = Path("~/.local/share/braingemma")
    """Data folder, private to the service's user."""
    min_free_gb: float = Field(5, ge=0)
    """Below this the listener answers 0xA700 (out of resources)."""
    shared_url: str = ""
    """Several hosts: where they exchange job files, as fsspec reads it: a folder (NFS), or s3://bucket/prefix."""
    keep_days: float = Field(7, ge=0)
    """Jobs that are done, and delivered where they were to be delivered, are kept this long."""
    keep_days_set_aside: float = Field(7, ge=0)
    """Jobs with nothing to report, and cancelled ones, are kept this long."""
    keep_days_failed: float | None = Field(None, ge=0)
    """Failed jobs are kept this long, and those that were set aside as what worked on them ended or stood still; None:
    until a person removes or retries them."""
    low_free_gb: float = Field(0, ge=0)
    """Below this much free space, done and delivered jobs go before their time, the oldest first; 0: never."""

    @property
    def shared_folder(self) -> Path | None:
        """The shared storage, where it is a folder; None: there is none, or it is something else."""
        scheme, separator, rest = self.shared_url.partition("://")
        path = Path(rest if separator else scheme)
        return path if path.is_absolute() and scheme in ("file", str(path)) else None

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - resolve() would follow links


class Web(Section):
    """`[web]`: the page."""

    enabled: bool = True
    """Serve the page, the metrics at `/metrics`, and `/healthz`."""
    host: str = "127.0.0.1"
    """Address to bind; one that is not loopback needs `token` or `user_header`."""
    port: int = Field(8180, ge=0, le=65535)
    """TCP port; 0 lets the system choose one."""
    names: tuple[str, ...] = ()
    """Host names by which browsers may call the page, beside loopback's and `host`."""
    token: SecretStr = SecretStr("")
    """Whoever shows it may see and do everything: 16 characters or more; empty: no token."""
    user_header: str = ""
    """Header in which a reverse proxy names the person that it has authenticated, such as `X-Remote-User`."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose `user_header` is believed; must be named with it."""
    proxy_user: str = ""
    """The proxy's local account, such as `www-data`: of programs on this machine only its are believed; empty: all."""
    session_hours: float = Field(12, gt=0)
    """A person who showed the token must show it again after so long."""
    upload: bool = False
    """Studies may be uploaded in the browser by whoever may use the page."""
    upload_mb: int = Field(2048, ge=1)
    """Largest upload, MB, and what the archives in it may inflate to."""
    viewer_url: str = ""
    """Where "Open in viewer" leads, such as `https://pacs.example/ohif/viewer?StudyInstanceUIDs={StudyInstanceUID}`;
    `{SeriesInstanceUID}`, `{PatientID}` and `{AccessionNumber}` may stand in it, too. Empty: no link."""

    @model_validator(mode="after")
    def _guarded_unless_loopback(self) -> Web:
        token = self.token.get_secret_value()
        if token and len(token) < LEAST_TOKEN:
            raise ValueError(f"token: expected at least {LEAST_TOKEN} characters, got {len(token)}")
        if self.enabled and not is_loopback(self.host) and not token and not self.user_header:
            raise ValueError(f"host {self.host!r} is not loopback: set token, or user_header behind a reverse proxy")
        if self.user_header and not self.trusted_proxies:
            raise ValueError("user_header: name the addresses of the reverse proxies in trusted_proxies")
        for address in self.trusted_proxies:
            ipaddress.ip_address(address)
        return self

    @field_validator("viewer_url")
    @classmethod
    def _is_a_template(cls, url: str) -> str:
        if not url:
            return url
        known = ", ".join(f"{{{name}}}" for name in VIEWER_FIELDS)
        try:
            parts = list(Formatter().parse(url))
        except ValueError as error:
            raise ValueError(f"expected a URL with placeholders of {known}: {error}") from None
        fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        unknown = [name for name, spec, conversion in fields if name not in VIEWER_FIELDS or spec or conversion]
        if unknown or not fields:
            raise ValueError(f"expected placeholders of {known}, got {', '.join(map(repr, unknown)) or 'none'}")
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.netloc or "{" in address.netloc:
            raise ValueError("expected a URL that begins with http:// or https:// and a host")
        return url

    @field_validator("proxy_user")
    @classmethod
    def _is_an_account(cls, name: str) -> str:
        if name:
            try:
                pwd.getpwnam(name)
            except KeyError:
                raise ValueError("expected an account of this machine") from None
        return name


class Review(Section):
    """`[review]`: what a reader's word does."""

    verified_sr: bool = False
    """Send a confirmed or edited report as a new SR, VERIFIED by the reader; only where `[web] user_header` names
    the reader and `organization` is set."""
    organization: str = ""
    """Verifying organization (0040,A027)."""


class Log(Section):
    """`[log]`: what is written to standard error."""

    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line, each with the job's id where there is one."""


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        validate_default=True,
    )

    listener: Listener = Listener()
    assembly: Assembly = Assembly()
    selection: Selection = Selection()
    patient: Patient = Patient()
    checks: Checks = Checks()
    model: Model = Model()
    explain: Explain = Explain()
    results: Results = Results()
    destinations: tuple[Destination, ...] = ()
    sources: tuple[Source, ...] = ()
    rules: tuple[Rule, ...] = ()
    notices: tuple[Notice, ...] = ()
    engine: Engine = Engine()
    storage: Storage = Storage()
    web: Web = Web()
    review: Review = Review()
    log: Log = Log()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        for section, entries in (("destinations", self.destinations), ("sources", self.sources)):
            names = [entry.name for entry in entries]
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{section}: each name may stand once, got twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _receivers_are_unique(self) -> Settings:
        names = [n.name for n in self.notices]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"notices: each name may stand once, got twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _verifying_needs_a_person(self) -> Settings:
        if self.review.verified_sr and not (self.web.user_header and self.review.organization):
            raise ValueError("review.verified_sr: needs web.user_header (who the reader is) and review.organization")
        return self

    @model_validator(mode="after")
    def _deidentified_names_nobody(self) -> Settings:
        if self.results.deidentify and self.review.verified_sr:
            raise ValueError("results.deidentify: excludes review.verified_sr, which names the reader")
        if self.results.deidentify and self.engine.database_url and self.results.deidentify_key is None:
            raise ValueError("results.deidentify: on several hosts needs results.deidentify_key, the same on each")
        return self

    @property
    def pseudonym_key(self) -> Path:
        """File of the secret from which pseudonyms follow."""
        return (self.results.deidentify_key or self.data.pseudonym_key).expanduser()

    @property
    def data(self) -> DataFolder:
        """The data folder."""
        return DataFolder(self.storage.folder)

    @model_validator(mode="after")
    def _second_copies_have_a_place(self) -> Settings:
        if self.listener.replicate == "shared" and not (self.engine.database_url and self.storage.shared_folder):
            raise ValueError(
                'listener.replicate = "shared": needs engine.database_url, and storage.shared_url as a folder '
                f"(file:///...), got {self.storage.shared_url!r}"
            )
        return self

    @model_validator(mode="after")
    def _several_hosts_share_files(self) -> Settings:
        if not self.engine.work and not self.storage.shared_url:
            raise ValueError("engine.work = false: needs storage.shared_url, where workers find what was received")
        return self
