"""Reading findings out of report text: sides, sites and presence, and the words that carry them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braingemma.findings.text import Span, finding_spans, findings_from_text
from braingemma.findings.topics import HEDGED_CONFIDENCE
from braingemma.findings.vocabulary import FINDINGS, SITES, Finding, describe_findings, mirror_text

REPO = Path(__file__).resolve().parents[3]
TEXTBRATS = REPO.parent / "shared" / "data" / "textbrats_train.jsonl"
EXPECTATIONS = json.loads((Path(__file__).parents[1] / "expectations" / "textbrats_findings.json").read_text())
HAND_READ = [*EXPECTATIONS["drawn at random"], *EXPECTATIONS["chosen as hard"]]
OTHER_SIDE = {"left": "right", "right": "left"}

UNMENTIONED = {name: Finding(name, "undetermined") for name in FINDINGS}


def mirrored(finding: Finding) -> Finding:
    if finding.laterality is None:
        return finding
    return replace(finding, laterality=OTHER_SIDE.get(finding.laterality, finding.laterality))


def present(finding: str, laterality: str | None = None, *sites: str, hedged: bool = False) -> Finding:
    named = sites or (("ventricle",) if finding == "ventricular_compression" else ())
    return Finding(finding, "present", laterality, named, HEDGED_CONFIDENCE if hedged else None)


def absent(finding: str) -> Finding:
    return Finding(finding, "absent")


def lesion(laterality: str | None = None, *sites: str) -> Finding:
    return present("lesion", laterality, *sites)


def edema(laterality: str | None = None, *sites: str, hedged: bool = False) -> Finding:
    return present("edema", laterality, *sites, hedged=hedged)


def necrosis(laterality: str | None = None, *sites: str, hedged: bool = False) -> Finding:
    return present("necrosis", laterality, *sites, hedged=hedged)


def compression(laterality: str | None = None) -> Finding:
    return present("ventricular_compression", laterality)


NO_LESION, NO_EDEMA, NO_NECROSIS, NO_COMPRESSION = (absent(name) for name in FINDINGS)
NOTHING = (NO_LESION, NO_EDEMA, NO_NECROSIS, NO_COMPRESSION)

SIDES_AND_SITES = {
    "Bifrontal tumor.": [lesion("bilateral", "frontal")],
    "Lesion area is in the LEFT FRONTAL lobe.": [lesion("left", "frontal")],
    "The lesion area is in the left\nfrontal and parietal\r\nlobes.": [lesion("left", "frontal", "parietal")],
    "Left-sided fronto-parietal glioma.": [lesion("left", "frontal", "parietal")],
    "A mass in the right frontotemporal region.": [lesion("right", "frontal", "temporal")],
    "The lesion lies in the left temporo-occipital region.": [lesion("left", "temporal", "occipital")],
    "The lesion is located in the frontal lobe on the left.": [lesion("left", "frontal")],
    "In the right occipital lobe a lesion is seen.": [lesion("right", "occipital")],
    "Both frontal lobes show lesions.": [lesion("bilateral", "frontal")],
    "The lesion involves both hemispheres.": [lesion("bilateral")],
    "Lesions are seen on both sides of the brain.": [lesion("bilateral")],
    "Periventricular lesions are seen bilaterally.": [lesion("bilateral")],
    "The lesion area is in the left frontal and right parietal lobes.": [lesion("bilateral", "frontal", "parietal")],
    "The lesion area is in the left and right insulae.": [lesion("bilateral", "insula")],
    "The lesion area is in both the frontal and parietal lobes of the left hemisphere.": [
        lesion("left", "frontal", "parietal")
    ],
    "The lesion shows both high and low signals in the right parietal lobe.": [lesion("right", "parietal")],
    "The lesion is in the corpus callosum, crossing to both sides.": [lesion("bilateral", "corpus callosum")],
    "A lesion is seen in the left cerebellar hemisphere and in the brain stem.": [
        lesion("left", "cerebellum", "brainstem")
    ],
    "The tumor arises in the right thalamus.": [lesion("right", "thalamus")],
    "The lesion area is in the temporal bone region on the left.": [lesion("left")],
    "The lesion is adjacent to the left lateral ventricle.": [lesion("left")],
    "A lesion is present near the frontal horn of the right lateral ventricle.": [lesion("right")],
    "The lesion area is not limited to the left frontal lobe but extends into the left parietal lobe.": [
        lesion("left", "frontal", "parietal")
    ],
}

# Each names a side that is not the lesion's.
SIDE_OF_SOMETHING_ELSE = {
    "The lesion area is in the right frontal lobe. The left ventricle is compressed.": [
        lesion("right", "frontal"),
        compression("left"),
    ],
    "The lesion in the right frontal lobe compresses the left lateral ventricle.": [
        lesion("right", "frontal"),
        compression("left"),
    ],
    "Left-sided frontal glioma with mass effect on the right lateral ventricle.": [
        lesion("left", "frontal"),
        compression("right"),
    ],
    "Right frontal lesion. Left lateral ventricular compression.": [lesion("right", "frontal"), compression("left")],
    "Lesion in the right temporal lobe. Midline shift to the left. Left lateral ventricle dilated.": [
        lesion("right", "temporal")
    ],
    "The lesion area is in the left temporal lobe, displacing the midline to the right.": [lesion("left", "temporal")],
    "The lesion area is in the left temporal lobe with rightward midline shift.": [lesion("left", "temporal")],
    "The lesion area is in the right parietal lobe; the left hemisphere is normal.": [lesion("right", "parietal")],
    "The right hemisphere is normal. The lesion area is in the left frontal lobe.": [lesion("left", "frontal")],
    "The lesion area is in the right parietal lobe, without involvement of the left parietal lobe.": [
        lesion("right", "parietal")
    ],
    "The lesion area is in the left frontal lobe and does not cross to the right.": [lesion("left", "frontal")],
    "The lesion area is in the left temporal lobe, with signal higher than in the right temporal lobe.": [
        lesion("left", "temporal")
    ],
    "The lesion area is in the left frontal lobe, sparing the parietal lobe.": [lesion("left", "frontal")],
    "The lesion area is in the left frontal lobe (right-handed patient).": [lesion("left", "frontal")],
    "There is no lesion in the right hemisphere, but there is a lesion in the left occipital lobe.": [
        lesion("left", "occipital")
    ],
    "Edema is seen in the left frontal lobe, not in the right.": [edema("left", "frontal")],
    "Ventricular compression is due to the lesions on the right side.": [lesion("right"), compression()],
    "The ventricles are pressed upon by the tumor, and ventricular compression by right-side lesions is mild.": [
        lesion("right"),
        compression(),
    ],
    "The left lateral ventricle is compressed, the right is spared.": [compression("left")],
    "Ventricular compression is seen, with a narrowed right ventricle and enlargement of the left ventricle.": [
        compression("right")
    ],
    "The left ventricle is narrowed compared with the right ventricle.": [compression("left")],
    "The right lateral ventricle is normal, while the left lateral ventricle is compressed.": [compression("left")],
    "There is compression of both lateral ventricles.": [compression("bilateral")],
}

PRESENCE = {
    "No lesion, edema, necrosis, or ventricular compression is identified.": NOTHING,
    "Normal brain MRI.": NOTHING,
    "No abnormality is detected.": NOTHING,
    "The lesion area is absent. Edema is absent. Necrosis is absent. Ventricular compression is absent.": NOTHING,
    "Lesion: none. Edema: none. Necrosis: not observed. Ventricular compression: no.": NOTHING,
    "There is no evidence of tumor, edema or necrosis.": NOTHING[:3],
    "Neither edema nor necrosis is identified.": [NO_EDEMA, NO_NECROSIS],
    "Edema and necrosis are absent.": [NO_EDEMA, NO_NECROSIS],
    "No significant edema is seen.": [NO_EDEMA],
    "Edema isn't observed.": [NO_EDEMA],
    "Edema (none).": [NO_EDEMA],
    "Necrosis is no evident sign of necrosis.": [NO_NECROSIS],
    "The lesion has no edema.": [lesion(), NO_EDEMA],
    "The lesion does not show necrosis.": [lesion(), NO_NECROSIS],
    "The ventricles are not compressed.": [NO_COMPRESSION],
    "The ventricles show no compression.": [NO_COMPRESSION],
    "The lateral ventricles are neither compressed nor deformed.": [NO_COMPRESSION],
    "The ventricles are normal in size.": [NO_COMPRESSION],
    "There is no sign of compression of the lateral ventricles.": [NO_COMPRESSION],
    "The lesion area is not seen in the right frontal lobe.": [NO_LESION],
    "Edema is minimal.": [edema()],
    "Necrosis is seen with low or absent signal in the left temporal lobe.": [necrosis("left", "temporal")],
    "Edema is noticeable, notably in deep white matter.": [edema()],
    "Ventricular compression is not only present but severe.": [compression()],
    "Ventricular compression is mild, with no obvious hydrocephalus.": [compression()],
    "Edema may be present in the left parietal lobe.": [edema("left", "parietal", hedged=True)],
    "Possible necrosis in the right temporal lobe.": [necrosis("right", "temporal", hedged=True)],
    "Edema cannot be excluded.": [edema(hedged=True)],
    "Edema is unlikely.": [replace(NO_EDEMA, confidence=HEDGED_CONFIDENCE)],
    "Ventricular compression is not severe.": [replace(NO_COMPRESSION, confidence=HEDGED_CONFIDENCE)],
    "Ventricular compression cannot be assessed.": [],
    "Ventricular compression is unclear, as the ventricles are not fully shown.": [],
    "": [],
    "The quick brown fox.": [],
}

SEVERAL_TOPICS = {
    "There is a lesion in the left frontal lobe with surrounding edema and no necrosis, without ventricular "
    "compression.": [lesion("left", "frontal"), edema(), NO_NECROSIS, NO_COMPRESSION],
    "A mass in the right frontoparietal region with surrounding edema extending into the left frontal lobe.": [
        lesion("right", "frontal", "parietal"),
        edema("left", "frontal"),
    ],
    "The lesion is in the left frontal lobe. The lesion is surrounded by edema in the left parietal lobe.": [
        lesion("left", "frontal"),
        edema("left", "parietal"),
    ],
    "Lesion in left frontal lobe\nEdema in left parietal lobe\nNo necrosis": [
        lesion("left", "frontal"),
        edema("left", "parietal"),
        NO_NECROSIS,
    ],
    "The lesion area is in the right frontal lobe. No necrosis or edema, although the right lateral ventricle is "
    "compressed.": [lesion("right", "frontal"), NO_EDEMA, NO_NECROSIS, compression("right")],
    "The lesion shows no necrosis but marked edema in the left parietal lobe.": [
        lesion("left", "parietal"),
        edema("left", "parietal"),
        NO_NECROSIS,
    ],
    "Edema is seen around the lesion in the right frontal lobe. It spreads to the parietal lobe. No necrosis.": [
        lesion("right", "frontal"),
        edema("right", "frontal", "parietal"),
        NO_NECROSIS,
    ],
}


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        pytest.param(text, stated, id=text[:60] or "empty")
        for table in (SIDES_AND_SITES, SIDE_OF_SOMETHING_ELSE, PRESENCE, SEVERAL_TOPICS)
        for text, stated in table.items()
    ],
)
def test_sentence_reads_as_stated_and_its_mirror_as_the_mirror(text: str, stated: list[Finding]) -> None:
    expected = tuple((UNMENTIONED | {f.finding: f for f in stated}).values())
    assert findings_from_text(text) == expected
    assert findings_from_text(mirror_text(text)) == tuple(mirrored(f) for f in expected)


# ---- reports of radiologists


@cache
def textbrats() -> dict[str, str]:
    if not TEXTBRATS.exists():
        pytest.skip(f"needs {TEXTBRATS.name} beside the checkout")
    return {row["id"]: row["report"] for row in map(json.loads, TEXTBRATS.read_text().splitlines())}


def test_the_hand_read_table_is_whole() -> None:
    assert len(EXPECTATIONS["drawn at random"]) == 60
    assert len({row["id"] for row in HAND_READ}) == len(HAND_READ)


@pytest.mark.shared_data
@pytest.mark.parametrize("row", HAND_READ, ids=lambda row: row["id"])
def test_hand_read_report(row: dict[str, Any]) -> None:
    report = textbrats()[row["id"]]
    read = {f.finding: (f.presence, f.laterality, list(f.sites)) for f in findings_from_text(report)}
    assert read == {name: (row[name]["presence"], row[name]["laterality"], row[name]["sites"]) for name in FINDINGS}


@pytest.mark.shared_data
def test_the_lesions_side_is_found_in_nearly_all_reports_that_state_one() -> None:
    """A report states a side where the sentence on the lesion's place names one; at least 97 % must be found."""
    stated, found = 0, []
    for report in textbrats().values():
        place = report.lower().partition("edema")[0]
        left, right = (bool(re.search(rf"\b{side}\b", place)) for side in ("left", "right"))
        both = bool(re.search(r"\b(bilateral|both (sides|hemispheres|cerebral|frontal|parietal))", place))
        if not (left or right or both):
            continue
        stated += 1
        expected = "bilateral" if both or (left and right) else "left" if left else "right"
        lesion = next(f for f in findings_from_text(report) if f.finding == "lesion")
        found.append(lesion.laterality == expected)
    assert stated > 250
    assert sum(found) >= 0.97 * stated


@pytest.mark.shared_data
def test_every_report_mirrors() -> None:
    for report in textbrats().values():
        exchanged = tuple(mirrored(f) for f in findings_from_text(report))
        assert findings_from_text(mirror_text(report)) == exchanged


# ---- properties

side = st.sampled_from(["left", "right"])
lobes = st.lists(st.sampled_from(["frontal", "parietal", "temporal", "occipital"]), min_size=1, max_size=4, unique=True)
signal = st.sampled_from(["with mixed high and low signals", "with patchy high-signal areas", "of uneven intensity"])


def lobes_in_words(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last} lobes" if first else f"{last} lobe"


def in_order(names: list[str]) -> tuple[str, ...]:
    return tuple(site for site in SITES if site in names)


@given(side, lobes, signal, side, lobes, side)
def test_each_section_keeps_its_own_side_and_sites(
    lesion_side: str, lesion_lobes: list[str], signal: str, edema_side: str, edema_lobes: list[str], pressed: str
) -> None:
    report = (
        f"The lesion area is in the {lesion_side} {lobes_in_words(lesion_lobes)} {signal}. "
        f"Edema is mainly around the lesions, in the {edema_side} {lobes_in_words(edema_lobes)}. "
        "Necrosis is not observed. "
        f"Ventricular compression is observed with the {pressed} lateral ventricle deformed."
    )
    assert findings_from_text(report) == (
        lesion(lesion_side, *in_order(lesion_lobes)),
        edema(edema_side, *in_order(edema_lobes)),
        NO_NECROSIS,
        compression(pressed),
    )


NAMES_IN_TEXT = dict(zip(FINDINGS, ("The lesion area", "Edema", "Necrosis", "Ventricular compression"), strict=True))


@given(
    st.dictionaries(st.sampled_from(FINDINGS), st.booleans(), min_size=4),
    st.sampled_from(["is not observed", "is not evident", "is absent", "was not seen", "is no evident sign of it"]),
    side,
)
def test_negating_a_section_flips_the_presence_of_that_finding_only(
    found: dict[str, bool], denial: str, side: str
) -> None:
    report = " ".join(
        f"{NAMES_IN_TEXT[name]} {f'is observed on the {side} side' if found[name] else denial}." for name in FINDINGS
    )
    presences = {f.finding: f.presence == "present" for f in findings_from_text(report)}
    assert presences == found
    assert all(f.laterality == (side if found[f.finding] else None) for f in findings_from_text(report))


WORDS = (
    "left right Left RIGHT bilateral both hemispheres sides lesion edema necrosis ventricle ventricular compression "
    "compressed deformed normal not no without neither nor but while and or , ; . : is are observed frontal "
    "fronto-parietal lobe horn of the in to shift compared with cannot be excluded may n't ("
)
vocabulary = st.sampled_from(WORDS.split())


@given(st.lists(vocabulary, max_size=40).map(" ".join) | st.text(max_size=200))
@settings(max_examples=300)
def test_any_text_gives_one_finding_per_topic_and_mirrors(text: str) -> None:
    findings = findings_from_text(text)
    assert tuple(f.finding for f in findings) == FINDINGS
    assert mirror_text(mirror_text(text)) == text
    assert findings_from_text(mirror_text(text)) == tuple(mirrored(f) for f in findings)
    for finding in findings:
        assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding
    for span in finding_spans(text):
        assert 0 <= span.start < span.end <= len(text)


# ---- spans, mirror, JSON, description


def test_spans_are_the_words_that_carry_the_findings() -> None:
    report = "The lesion area is in the right frontal lobe. Edema is not observed. The left ventricle is compressed."
    words = {(report[s.start : s.end], s.finding, s.kind, s.value) for s in finding_spans(report)}
    assert words == {
        ("lesion", "lesion", "finding", "lesion"),
        ("right", "lesion", "side", "right"),
        ("frontal", "lesion", "site", "frontal"),
        ("Edema", "edema", "finding", "edema"),
        ("not", "edema", "presence", "absent"),
        ("left", "ventricular_compression", "side", "left"),
        ("ventricle", "ventricular_compression", "finding", "ventricular_compression"),
        ("compressed", "ventricular_compression", "finding", "ventricular_compression"),
    }


def test_spans_come_in_the_order_of_the_text() -> None:
    spans = finding_spans("Edema is in the left temporal lobe. The lesion area is in the left insula.")
    assert [s.start for s in spans] == sorted(s.start for s in spans)
    assert spans[0] == Span(0, 5, "edema", "finding", "edema")


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Left-sided lesion, right lobe, LEFT.", "Right-sided lesion, left lobe, RIGHT."),
        ("leftward and rightmost", "rightward and leftmost"),
        ("bright copyright aleft lefty", "bright copyright aleft lefty"),
        ("a right-handed patient, left hemisphere", "a right-handed patient, right hemisphere"),
        ("bilateral", "bilateral"),
    ],
)
def test_mirror_exchanges_side_words_only(text: str, other: str) -> None:
    assert mirror_text(text) == other
    assert mirror_text(other) == text


def test_json_has_the_keys_of_the_report_file() -> None:
    finding = Finding("edema", "present", "left", ("frontal",), 0.75)
    assert finding.to_json() == {
        "finding": "edema",
        "presence": "present",
        "laterality": "left",
        "sites": ["frontal"],
        "confidence": 0.75,
    }


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"presence": "present"}, "finding"),
        ({"finding": "lesion", "presence": "maybe"}, "maybe"),
        ({"finding": "lesion", "presence": "present", "laterality": "both"}, "both"),
        ({"finding": "lesion", "presence": "present", "sites": ["frontal", "knee"]}, "knee"),
        ({"finding": "lesion", "presence": "present", "confidence": 2.0}, "2.0"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(entry: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Finding.from_json(entry)


def test_description_is_one_line_for_each_finding() -> None:
    findings = findings_from_text(
        "The lesion area is in the left frontal, parietal and temporal lobes. Edema may be present on the left. "
        "Necrosis is not observed."
    )
    assert describe_findings(findings).splitlines() == [
        "Lesion: present, left, frontal, parietal and temporal",
        "Edema: present, left, confidence 0.50",
        "Necrosis: absent",
        "Ventricular compression: undetermined",
    ]
