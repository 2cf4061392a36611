"""The steps of a study in their order, which stands nowhere else."""

from __future__ import annotations

STEPS = ("select", "convert", "report", "explain", "encode")
"""What is done to a study of DICOM instances."""

NIFTI_STEPS = ("import", *STEPS[STEPS.index("report") : STEPS.index("encode")])
"""What is done to a NIfTI file: it has nothing to select, and nothing that DICOM objects could refer to."""

DELIVER = "deliver"
"""What follows the steps, destination by destination."""


def steps_of(all_steps: tuple[str, ...], *, explain: bool) -> tuple[str, ...]:
    """The steps that a configuration asks for: all, or all but the explanation."""
    return all_steps if explain else tuple(step for step in all_steps if step != "explain")


RECEIVE = "receive"
"""Stands for all before them in a job whose study could not be handed over: it has no images."""
