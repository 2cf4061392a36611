"""Every module that has tables, so that whoever opens the database makes all of them, whatever else it imports."""

from daemon.assemble import index as received_index
from daemon.deliver import commitment
from daemon.engine import lease
from daemon.jobs import files as artefacts
from daemon.jobs import reviews
from daemon.jobs import store as jobs

TABLES = (
    artefacts.ARCHIVES,
    commitment.COMMITMENTS,
    jobs.DELIVERIES,
    jobs.JOBS,
    jobs.VERDICTS,
    lease.EXECUTORS,
    received_index.ARRIVALS,
    received_index.INSTANCES,
    received_index.OPEN_ASSOCIATIONS,
    received_index.SEGMENTS,
    reviews.REVIEWS,
)
