"""Reports of phantoms: four topics in the order of TextBraTS, worded in many ways. Every sentence is our own.

`write_report` is a function of the findings and a random generator; `braingemma.findings.text.findings_from_text` reads
the same findings back (a test holds this for hundreds of cases).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from braingemma.findings.vocabulary import Finding

_LOBES: Final = ("frontal", "parietal", "temporal", "occipital")
_NOUNS: Final = {
    "insula": "insula",
    "cerebellum": "cerebellum",
    "brainstem": "brainstem",
    "thalamus": "thalamus",
    "corpus callosum": "corpus callosum",
}

_LESION: Final = (
    "The lesion area is in {place}, with {signal}.",
    "The lesion area is located in {place}, showing {signal}.",
    "The lesion area lies in {place} and shows {signal}.",
)
# Greedy decoding takes the likeliest next word, not the likeliest meaning: a meaning that is spread over more wordings
# than its opposite loses at even odds. So opposites have equally many wordings, or part at their first word.
_SIGNALS: Final = ("a heterogeneous high signal", "an uneven high signal", "a patchy high signal")
_PLAIN_SIGNALS: Final = ("a homogeneous high signal", "an even high signal", "a uniform high signal")
_EDEMA: Final = (
    "Edema is seen around the lesion in {place}.",
    "Edema is present in {place}, with a bright margin.",
    "Edema is marked in {place}.",
)
_NO_EDEMA: Final = (
    "No edema is seen.",
    "No edema is observed.",
    "No edema is present.",
)
_NECROSIS: Final = (
    "Necrosis is present in {place}, with a low signal core.",
    "Necrosis is seen in {place} as an area of low signal.",
    "Necrosis forms a dark core in {place}.",
)
_NO_NECROSIS: Final = (
    "No necrosis is seen.",
    "No necrosis is observed.",
    "No necrosis is present.",
)
_COMPRESSION: Final = {
    "left": (
        "Ventricular compression is seen, the left lateral ventricle is narrowed.",
        "Ventricular compression is present on the left.",
        "Ventricular compression affects the left lateral ventricle.",
    ),
    "right": (
        "Ventricular compression is seen, the right lateral ventricle is narrowed.",
        "Ventricular compression is present on the right.",
        "Ventricular compression affects the right lateral ventricle.",
    ),
    "bilateral": (
        "Ventricular compression is seen on both sides.",
        "Ventricular compression affects both lateral ventricles.",
        "Ventricular compression is bilateral.",
    ),
}
_NO_COMPRESSION: Final = (
    "No ventricular compression is seen.",
    "No ventricular compression is observed.",
    "No ventricular compression is present.",
)
_NO_LESION: Final = (
    "No lesion area is seen.",
    "No lesion area is observed in either hemisphere.",
    "No mass or lesion area is identified.",
)


def describe_place(sites: Sequence[str], side: str | None) -> str:
    """Words for a place: "the left frontal and parietal lobes", "the right temporal lobe and the right insula"."""
    lobes = [site for site in sites if site in _LOBES]
    others = [_NOUNS[site] for site in sites if site in _NOUNS]
    if not lobes and not others:
        return {"left": "the left hemisphere", "right": "the right hemisphere"}.get(side or "", "both hemispheres")
    parts = []
    if lobes:
        many = side == "bilateral" or len(lobes) > 1
        lead = "the bilateral" if side == "bilateral" else f"the {side}"
        parts.append(f"{lead} {_joined(lobes)} {'lobes' if many else 'lobe'}")
    parts += [f"the {side} {noun}" for noun in others]
    return _joined(parts)


def _joined(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def write_report(findings: Sequence[Finding], rng: np.random.Generator) -> str:
    """A report of four sentences that states each finding once."""
    by_name = {finding.finding: finding for finding in findings}
    plain = by_name["necrosis"].presence == "absent"
    sentences = [
        _lesion_sentence(by_name["lesion"], plain, rng),
        _sentence(by_name["edema"], _EDEMA, _NO_EDEMA, rng),
        _sentence(by_name["necrosis"], _NECROSIS, _NO_NECROSIS, rng),
        _compression_sentence(by_name["ventricular_compression"], rng),
    ]
    return " ".join(sentences)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _lesion_sentence(finding: Finding, plain: bool, rng: np.random.Generator) -> str:
    if finding.presence == "absent":
        return _pick(rng, _NO_LESION)
    signal = _pick(rng, _PLAIN_SIGNALS if plain else _SIGNALS)
    return _pick(rng, _LESION).format(place=describe_place(finding.sites, finding.laterality), signal=signal)


def _sentence(finding: Finding, present: Sequence[str], absent: Sequence[str], rng: np.random.Generator) -> str:
    if finding.presence == "absent":
        return _pick(rng, absent)
    return _pick(rng, present).format(place=describe_place(finding.sites, finding.laterality))


def _compression_sentence(finding: Finding, rng: np.random.Generator) -> str:
    if finding.presence == "absent" or finding.laterality is None:
        return _pick(rng, _NO_COMPRESSION)
    return _pick(rng, _COMPRESSION[finding.laterality])
