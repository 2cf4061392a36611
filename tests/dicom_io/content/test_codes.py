"""Codes are those of PS3.16 as pydicom holds them; the doc's list of values is the expectation."""

from __future__ import annotations

import pytest
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code

from dicom_io.content import codes

EXPECTED = {
    "present": ("52101004", "SCT"),
    "absent": ("272519000", "SCT"),
    "undetermined": ("373068000", "SCT"),
    "left": ("7771000", "SCT"),
    "right": ("24028007", "SCT"),
    "bilateral": ("51440002", "SCT"),
    "frontal": ("83251001", "SCT"),
    "parietal": ("16630005", "SCT"),
    "temporal": ("78277001", "SCT"),
    "occipital": ("31065004", "SCT"),
    "insula": ("36169008", "SCT"),
    "cerebellum": ("113305005", "SCT"),
    "brainstem": ("119238007", "SCT"),
    "thalamus": ("42695009", "SCT"),
    "corpus callosum": ("88442005", "SCT"),
    "ventricle": ("35764002", "SCT"),
    "lesion": ("52988006", "SCT"),
    "edema": ("79654002", "SCT"),
    "necrosis": ("6574001", "SCT"),
    "ventricular_compression": ("VENTRICULAR_COMP", "99BRAINGEMMA3D"),
}
ALL = codes.PRESENCES | codes.LATERALITIES | codes.SITES | codes.FINDINGS


@pytest.mark.parametrize("word", EXPECTED)
def test_a_word_has_its_code(word: str) -> None:
    assert (ALL[word].value, ALL[word].scheme_designator) == EXPECTED[word]


def test_every_public_code_is_in_the_dictionary() -> None:
    found = [value for value in vars(codes).values() if isinstance(value, Code)] + list(ALL.values())
    for code in found:
        if code.scheme_designator in ("SCT", "DCM", "LN"):
            known = {value for meanings in concepts[code.scheme_designator].values() for value in meanings}
            assert code.value in known, code


def test_private_codes_fit_their_value_representation_and_are_declared() -> None:
    private = [code for code in ALL.values() if code.scheme_designator not in ("SCT", "DCM")]
    assert private
    for code in private:
        assert code.scheme_designator == codes.PRIVATE_SCHEME
        assert code.scheme_designator.startswith("99")
        assert len(code.value) <= 16
        assert len(code.scheme_designator) <= 16
