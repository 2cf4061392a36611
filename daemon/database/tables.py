"""Every table of the daemon's database, and the states that its rows take."""

from __future__ import annotations

import enum
import re

import sqlalchemy as sa


class CleanText(sa.types.TypeDecorator[str]):
    """Text of any origin as every database can keep it: NUL and lone surrogates become U+FFFD."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """A value on its way into the database, or into a comparison."""
        del dialect
        return None if value is None else clean(str(value))


def clean(text: str) -> str:
    """The text without what PostgreSQL or UTF-8 cannot hold."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if _HARD.search(text) else text


_HARD = re.compile("[\0\ud800-\udfff]")

metadata = sa.MetaData()
"""All tables of the daemon register here; `create_tables` makes them."""


class JobState(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DELIVERING = "delivering"
    DONE = "done"
    SET_ASIDE = "set_aside"
    """Not reported, and never tried again by itself: there is nothing to report, or the process that works on it ends
    or stands still again and again. The reason says which; `braingemma jobs retry` starts it again."""
    FAILED = "failed"
    """Its work, or its delivery, cannot be done as things are; `braingemma jobs retry` starts it again."""
    CANCELLED = "cancelled"
    REMOVING = "removing"
    """Its time is over: its files, and then this row, are being removed, and nothing starts it again."""


FINAL_STATES = frozenset({JobState.DONE, JobState.SET_ASIDE, JobState.FAILED, JobState.CANCELLED, JobState.REMOVING})
RETRIED_STATES = FINAL_STATES - {JobState.DONE, JobState.REMOVING}
"""A person may start a job again that ended so."""
STOPPED_STATES = frozenset({JobState.CANCELLED, JobState.REMOVING})
"""Nothing more of such a job is done or sent."""


class DeliveryState(enum.StrEnum):
    """Where one object stands on its way to one destination."""

    WAITING = "waiting"
    """To be sent, for the first time or again."""
    UNCONFIRMED = "unconfirmed"
    """Accepted with Success or a warning; whether the destination holds it is being asked."""
    SENT = "sent"
    """Accepted, and confirmed where the destination can be asked."""
    DEAD = "dead_letter"
    """Given up with a reason; `braingemma jobs retry` lets it wait again."""
    REPLACED = "replaced"
    """An image that a later job of the series replaces: not sent any more."""


OPEN_DELIVERIES = frozenset({DeliveryState.WAITING, DeliveryState.UNCONFIRMED})
"""Something is still to be done about these, by itself."""

JOBS = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", CleanText, primary_key=True),
    sa.Column("study_uid", CleanText, nullable=False, index=True),
    sa.Column("supersedes", CleanText, index=True),
    sa.Column("state", CleanText, nullable=False, index=True),
    sa.Column("step", CleanText, nullable=False, default=""),
    sa.Column("reason", CleanText, nullable=False, default=""),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("runs", sa.Integer, nullable=False, default=1),
    sa.Column("progress", CleanText, nullable=False, default=""),
    sa.Column("timings", CleanText, nullable=False, default="{}"),
    sa.Column("result", CleanText, nullable=False, default=""),
    sa.Column("series_uid", CleanText, nullable=False, default="", index=True),
    sa.Column("priority", CleanText, nullable=False, default="routine"),
    sa.Column("deaths", sa.Integer, nullable=False, default=0),  # of what worked on it, in the step that it is at
)
VERDICTS = sa.Table(
    "series_verdicts",
    metadata,
    sa.Column("job_id", CleanText, primary_key=True),
    sa.Column("series_uid", CleanText, primary_key=True, index=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False, default=0),  # of several under one UID
    sa.Column("verdict", CleanText, nullable=False),
    sa.Column("reasons", CleanText, nullable=False),
    sa.Column("description", CleanText, nullable=False, default=""),  # SeriesDescription
    sa.Column("number", CleanText, nullable=False, default=""),  # SeriesNumber
    sa.Column("instances", sa.Integer, nullable=False, default=0),
    sa.Column("joined", CleanText, nullable=False, default="[]"),  # JSON: series UIDs of slices that are one series
)
JOB_STUDIES = sa.Table(
    "job_studies",
    metadata,
    sa.Column("job_id", CleanText, primary_key=True),
    sa.Column("patient_name", CleanText, nullable=False, default=""),
    sa.Column("patient_id", CleanText, nullable=False, default=""),
    sa.Column("accession_number", CleanText, nullable=False, default=""),
    sa.Column("study_date", CleanText, nullable=False, default=""),
    sa.Column("study_description", CleanText, nullable=False, default=""),
    sa.Column("series_description", CleanText, nullable=False, default=""),
)
"""Whose study a job is of, for the worklist; apart from `JOBS`, whose rows are shown to everybody."""
JOB_WORDS = sa.Table(
    "job_words",
    metadata,
    sa.Column("word", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), primary_key=True),
    sa.Column("job_id", CleanText, primary_key=True, index=True),
    sa.Column("identity", sa.Boolean, nullable=False),  # of a patient or an order, not of a UID or a job
)
"""What a job is found by: folded words, which an index finds by how they begin (hence bytewise order)."""
DELIVERIES = sa.Table(
    "deliveries",
    metadata,
    sa.Column("job_id", CleanText, primary_key=True),
    sa.Column("destination", CleanText, primary_key=True),
    sa.Column("sop_instance_uid", CleanText, primary_key=True),
    sa.Column("kind", CleanText, nullable=False),
    sa.Column("file", CleanText, nullable=False),
    sa.Column("state", CleanText, nullable=False, index=True),
    sa.Column("status", CleanText, nullable=False, default=""),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("reason", CleanText, nullable=False, default=""),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("transaction_uid", CleanText, nullable=False, default=""),
    sa.Column("checks", sa.Integer, nullable=False, default=0),
    sa.Column("confirmed", CleanText, nullable=False, default=""),
)


class InstanceState(enum.StrEnum):
    """What became of a received instance."""

    PENDING = "pending"
    """Waits until its study is complete."""
    HANDED_OVER = "handed_over"
    """Lies in the input folder of a job."""
    OWN_RESULT = "own_result"
    """One of our results that a PACS sent back; never starts work."""
    CONFLICT = "conflict"
    """Has study, series and SOP Instance UID of an earlier instance, but other bytes; kept aside, the earlier one
    stands."""
    DAMAGED = "damaged"
    """Its bytes in the spool no longer have their checksum."""
    PASSED_ON = "passed_on"
    """Passed on to the receiver that assembles its study."""
    SET_ASIDE = "set_aside"
    """Its study could not be handed over; the bytes stay in the spool until the job that says why is removed."""


OF_A_JOB = (InstanceState.PENDING.value, InstanceState.HANDED_OVER.value, InstanceState.SET_ASIDE.value)
"""Instances in these states make up the next job of their study."""


INSTANCES = sa.Table(
    "received_instances",
    metadata,
    sa.Column("study_uid", CleanText, primary_key=True),
    sa.Column("series_uid", CleanText, primary_key=True, index=True),
    sa.Column("sop_uid", CleanText, primary_key=True, index=True),
    sa.Column("sha256", CleanText, primary_key=True),  # of the encoded data set
    sa.Column("sop_class_uid", CleanText, nullable=False),
    sa.Column("transfer_syntax_uid", CleanText, nullable=False),
    sa.Column("state", CleanText, nullable=False, index=True),
    sa.Column("job_id", CleanText, index=True),  # the job whose input folder holds its bytes
    sa.Column("file", CleanText, nullable=False, default=""),  # name in that folder
    sa.Column("segment", CleanText, nullable=False, index=True),
    sa.Column("data_offset", sa.BigInteger, nullable=False),
    sa.Column("data_length", sa.BigInteger, nullable=False),
    sa.Column("association", CleanText, nullable=False, index=True),
    sa.Column("calling_aet", CleanText, nullable=False),
    sa.Column("peer", CleanText, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("last_received", sa.Float, nullable=False),  # later than `received` where it came again
    sa.Column("copies", sa.Integer, nullable=False, default=1),
)
"""One row for each distinct instance: the same study, series and SOP Instance UID with the same bytes is one.

The SOP Instance UID alone does not say which instance it is: software that anonymises or imports studies anew gives
two patients' images the same ones."""
OPEN_ASSOCIATIONS = sa.Table(
    "received_open_associations",
    metadata,
    sa.Column("association", CleanText, primary_key=True),
    sa.Column("study_uid", CleanText, primary_key=True),
    sa.Column("receiver", CleanText, nullable=False, index=True),
)
"""Associations that sent instances of a study and are not known to have ended."""
SEGMENTS = sa.Table(
    "received_segments",
    metadata,
    sa.Column("segment", CleanText, primary_key=True),
    sa.Column("consumed", sa.BigInteger, nullable=False),  # bytes that are indexed
    sa.Column("finished", sa.Boolean, nullable=False),  # nobody writes it and all of it is indexed
)
"""How far each segment is indexed."""
ARRIVALS = sa.Table(
    "received_arrivals",
    metadata,
    sa.Column("job_id", CleanText, primary_key=True),
    sa.Column("study_uid", CleanText, nullable=False, index=True),
    sa.Column("supersedes", CleanText),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("submitted", sa.Boolean, nullable=False),
)
"""Studies that were found complete, each with its input folder; `submitted` once the pipeline knows."""
UNDER_WAY = sa.Table(
    "received_under_way",
    metadata,
    sa.Column("study_uid", CleanText, primary_key=True),
    sa.Column("starts", sa.Integer, nullable=False),
)
"""Studies that are being handed over, and how often that was begun: a row that stays was left by a killed process."""


COMPLETE_NOW = sa.Table(
    "received_complete_now",
    metadata,
    sa.Column("study_uid", CleanText, primary_key=True),
)
"""Studies that a person said are complete: they are handed over without more waiting."""
PAUSES = sa.Table(
    "pauses",
    metadata,
    sa.Column("what", CleanText, primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("by", CleanText, nullable=False),
)
"""What a person stopped for now: `queue`, so that no further study is begun."""
RECEIVERS = sa.Table(
    "receivers",
    metadata,
    sa.Column("receiver", CleanText, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("beat", sa.Float, nullable=False),
)
"""Several receivers: each with its last sign of life, by the database's clock."""
STUDY_OWNERS = sa.Table(
    "study_owners",
    metadata,
    sa.Column("study_uid", CleanText, primary_key=True),
    sa.Column("receiver", CleanText, nullable=False, index=True),
)
"""Several receivers: which of them assembles a study."""
RECEIVING = sa.Table(
    "receiving",
    metadata,
    sa.Column("study_uid", CleanText, primary_key=True),
    sa.Column("receiver", CleanText, primary_key=True),
)
"""Several receivers: on which studies of another one an association is open."""


STUDY_IDENTITIES = sa.Table(
    "study_identities",
    metadata,
    sa.Column("study_uid", CleanText, primary_key=True),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("texts", CleanText, nullable=False),  # JSON: by keyword
)
"""Several hosts: whose a study is by the last instance that came after it was handed over; it names people."""


class PullState(enum.StrEnum):
    """Where a pull stands."""

    RUNNING = "running"
    PAUSED = "paused"
    """By a person; what is fetched already is reported."""
    DONE = "done"
    CANCELLED = "cancelled"


class PulledState(enum.StrEnum):
    """Where one study of a pull stands."""

    WAITING = "waiting"
    FETCHING = "fetching"
    FETCHED = "fetched"
    """All of it is here; its report is not made yet."""
    REPORTED = "reported"
    REFUSED = "refused"
    """Nothing of it could be a FLAIR, or what came could not be reported."""
    FAILED = "failed"
    NOT_FOUND = "not_found"
    """The PACS has nothing of what was asked for."""
    CANCELLED = "cancelled"


PULLS = sa.Table(
    "pulls",
    metadata,
    sa.Column("pull_id", CleanText, primary_key=True),
    sa.Column("source", CleanText, nullable=False),
    sa.Column("asked", CleanText, nullable=False),  # JSON
    sa.Column("all_series", sa.Boolean, nullable=False),
    sa.Column("state", CleanText, nullable=False, index=True),
    sa.Column("searched", sa.Boolean, nullable=False),
    sa.Column("waits", CleanText, nullable=False),  # what it waits for, in words
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
)
PULLED = sa.Table(
    "pulled_studies",
    metadata,
    sa.Column("pull_id", CleanText, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("asked", CleanText, nullable=False),
    sa.Column("study_uid", CleanText, nullable=False, index=True),
    sa.Column("accession", CleanText, nullable=False),
    sa.Column("patient_id", CleanText, nullable=False),
    sa.Column("study_date", CleanText, nullable=False),
    sa.Column("state", CleanText, nullable=False, index=True),
    sa.Column("reason", CleanText, nullable=False),
    sa.Column("series", CleanText, nullable=False),  # JSON: what was taken and what not, with reasons
    sa.Column("instances", sa.Integer, nullable=False),
    sa.Column("way", CleanText, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("job_id", CleanText, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("updated", sa.Float, nullable=False),
)


COMMITMENTS = sa.Table(
    "commitments",
    metadata,
    sa.Column("transaction_uid", CleanText, primary_key=True),
    sa.Column("job_id", CleanText, nullable=False, index=True),
    sa.Column("destination", CleanText, nullable=False),
    sa.Column("requested", sa.Float, nullable=False),
    sa.Column("answered", sa.Float),
    sa.Column("committed", CleanText, nullable=False, default="[]"),
    sa.Column("failed", CleanText, nullable=False, default="{}"),
)


ARCHIVES = sa.Table(
    "archives",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", CleanText, nullable=False, index=True),
    sa.Column("step", CleanText, nullable=False),
    sa.Column("name", CleanText, nullable=False),
    sa.Column("sha256", CleanText, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)


EXECUTORS = sa.Table(
    "executors",
    metadata,
    sa.Column("executor_id", CleanText, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("state", CleanText, nullable=False, index=True),
    sa.Column("beat", sa.Float, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
)


RESULTS = sa.Table(
    "results",
    metadata,
    sa.Column("job_id", CleanText, primary_key=True),
    sa.Column("study_uid", CleanText, nullable=False, index=True),
    sa.Column("patient", CleanText, nullable=False, index=True),  # digests; empty where nothing is said
    sa.Column("name", CleanText, nullable=False),
    sa.Column("birth", CleanText, nullable=False),
    sa.Column("study_date", CleanText, nullable=False),
    sa.Column("study_time", CleanText, nullable=False),
    sa.Column("model_name", CleanText, nullable=False),
    sa.Column("model_version", CleanText, nullable=False),
    sa.Column("weights_sha256", CleanText, nullable=False),
    sa.Column("volume_ml", sa.Float),
    sa.Column("created", sa.Float, nullable=False),
)
"""What later studies of the same patient are compared with; kept when a job's files are removed."""


REVIEWS = sa.Table(
    "reviews",
    metadata,
    sa.Column("review_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", CleanText, nullable=False, index=True),
    sa.Column("verdict", CleanText, nullable=False),
    sa.Column("reader", CleanText, nullable=False, default=""),
    sa.Column("reason", CleanText, nullable=False, default=""),
    sa.Column("report", CleanText, nullable=False),
    sa.Column("edited", CleanText, nullable=False, default=""),
    sa.Column("facts", CleanText, nullable=False, default="{}"),
    sa.Column("created", sa.Float, nullable=False, index=True),
)


FIGURES = sa.Table(
    "figures",
    metadata,
    sa.Column("month", CleanText, primary_key=True),  # of the report, YYYY-MM, UTC
    sa.Column("scanner", CleanText, primary_key=True),
    sa.Column("name", CleanText, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
"""How many reports of a month and scanner say what; it outlives the jobs, and names nobody."""
FIGURED = sa.Table("figured", metadata, sa.Column("job_id", CleanText, primary_key=True))
"""Jobs that `FIGURES` counted: a step that runs again counts once."""
NOTICES = sa.Table(
    "notices",
    metadata,
    sa.Column("receiver", CleanText, primary_key=True),
    sa.Column("subject", CleanText, primary_key=True),
    sa.Column("body", CleanText, nullable=False),
    sa.Column("state", CleanText, nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("next_attempt", sa.Float, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("reason", CleanText, nullable=False, default=""),
)
"""What is to be told to whom, once for each subject."""
HEARD = sa.Table(
    "senders_heard",
    metadata,
    sa.Column("sender", CleanText, primary_key=True),
    sa.Column("last", sa.Float, nullable=False),
)
"""When each sender that `[[notices]]` watches last sent something, to whichever host; at first, when that began."""
