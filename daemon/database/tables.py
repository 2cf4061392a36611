"""Every table of the daemon's database, and the states that its rows take."""

from __future__ import annotations

import enum

import sqlalchemy as sa

metadata = sa.MetaData()
"""All tables of the daemon register here; `create_tables` makes them."""


class JobState(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DELIVERING = "delivering"
    DONE = "done"
    SET_ASIDE = "set_aside"
    """Nothing to report: the reason says why (never tried again by itself)."""
    FAILED = "failed"
    """Tried as often as allowed; `braingemma jobs retry` starts it again."""
    CANCELLED = "cancelled"


FINAL_STATES = frozenset({JobState.DONE, JobState.SET_ASIDE, JobState.FAILED, JobState.CANCELLED})


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
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("study_uid", sa.String(64), nullable=False, index=True),
    sa.Column("supersedes", sa.String(64), index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("step", sa.String(16), nullable=False, default=""),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("runs", sa.Integer, nullable=False, default=1),
    sa.Column("progress", sa.Text, nullable=False, default=""),
    sa.Column("timings", sa.Text, nullable=False, default="{}"),
    sa.Column("result", sa.Text, nullable=False, default=""),
    sa.Column("series_uid", sa.String(64), nullable=False, default="", index=True),
)
VERDICTS = sa.Table(
    "series_verdicts",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), primary_key=True, index=True),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("reasons", sa.Text, nullable=False),
)
DELIVERIES = sa.Table(
    "deliveries",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("destination", sa.String(64), primary_key=True),
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("status", sa.String(8), nullable=False, default=""),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("transaction_uid", sa.String(64), nullable=False, default=""),
    sa.Column("checks", sa.Integer, nullable=False, default=0),
    sa.Column("confirmed", sa.String(64), nullable=False, default=""),
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
    SET_ASIDE = "set_aside"
    """Its study could not be handed over; the bytes stay in the spool until the job that says why is removed."""


OF_A_JOB = (InstanceState.PENDING.value, InstanceState.HANDED_OVER.value, InstanceState.SET_ASIDE.value)
"""Instances in these states make up the next job of their study."""


INSTANCES = sa.Table(
    "received_instances",
    metadata,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), primary_key=True, index=True),
    sa.Column("sop_uid", sa.String(64), primary_key=True, index=True),
    sa.Column("sha256", sa.String(64), primary_key=True),  # of the encoded data set
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("job_id", sa.String(64), index=True),  # the job whose input folder holds its bytes
    sa.Column("file", sa.Text, nullable=False, default=""),  # name in that folder
    sa.Column("segment", sa.String(128), nullable=False, index=True),
    sa.Column("data_offset", sa.BigInteger, nullable=False),
    sa.Column("data_length", sa.BigInteger, nullable=False),
    sa.Column("association", sa.String(128), nullable=False, index=True),
    sa.Column("calling_aet", sa.String(16), nullable=False),
    sa.Column("peer", sa.String(64), nullable=False),
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
    sa.Column("association", sa.String(128), primary_key=True),
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("receiver", sa.String(64), nullable=False, index=True),
)
"""Associations that sent instances of a study and are not known to have ended."""
SEGMENTS = sa.Table(
    "received_segments",
    metadata,
    sa.Column("segment", sa.String(128), primary_key=True),
    sa.Column("consumed", sa.BigInteger, nullable=False),  # bytes that are indexed
    sa.Column("finished", sa.Boolean, nullable=False),  # nobody writes it and all of it is indexed
)
"""How far each segment is indexed."""
ARRIVALS = sa.Table(
    "received_arrivals",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("study_uid", sa.String(64), nullable=False, index=True),
    sa.Column("supersedes", sa.String(64)),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("submitted", sa.Boolean, nullable=False),
)
"""Studies that were found complete, each with its input folder; `submitted` once the pipeline knows."""
UNDER_WAY = sa.Table(
    "received_under_way",
    metadata,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("starts", sa.Integer, nullable=False),
)
"""Studies that are being handed over, and how often that was begun: a row that stays was left by a killed process."""


COMMITMENTS = sa.Table(
    "commitments",
    metadata,
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.String(64), nullable=False, index=True),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("requested", sa.Float, nullable=False),
    sa.Column("answered", sa.Float),
    sa.Column("committed", sa.Text, nullable=False, default="[]"),
    sa.Column("failed", sa.Text, nullable=False, default="{}"),
)


ARCHIVES = sa.Table(
    "archives",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(64), nullable=False, index=True),
    sa.Column("step", sa.String(32), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)


EXECUTORS = sa.Table(
    "executors",
    metadata,
    sa.Column("executor_id", sa.String(128), primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("beat", sa.Float, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
)


REVIEWS = sa.Table(
    "reviews",
    metadata,
    sa.Column("review_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(64), nullable=False, index=True),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("reader", sa.String(64), nullable=False, default=""),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("edited", sa.Text, nullable=False, default=""),
    sa.Column("facts", sa.Text, nullable=False, default="{}"),
    sa.Column("created", sa.Float, nullable=False, index=True),
)
