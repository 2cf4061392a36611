"""Every module that has tables, so that whoever opens the database makes all of them, whatever else it imports."""

from daemon import artefacts, commitment, jobs, lease, received_index, reviews

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
