from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicom_io.content.uids import device_uid, digest_uid

TEXT = st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]))


@given(st.lists(TEXT | st.integers(), min_size=1, max_size=4))
def test_a_uid_is_legal_and_always_the_same(parts: list[str | int]) -> None:
    uid = UID(digest_uid(*parts))
    assert uid.is_valid
    assert uid.startswith("2.25.")
    assert len(uid) <= 44
    assert uid == digest_uid(*parts)


def test_other_parts_give_other_uids() -> None:
    parts = [("a", "sr"), ("b", "sr"), ("a", "sc"), ("a", "sc", 1), ("a", "sc", 11), ("as", "c"), ("asc",)]
    assert len({digest_uid(*p) for p in parts}) == len(parts)


def test_a_known_uid_stays_as_it_is() -> None:
    # Objects that were sent long ago must get the same UID when they are encoded again.
    assert digest_uid("identity", "sr", 0) == "2.25.284818446770368732941496751553068213728"


def test_parts_that_could_be_confused_are_refused() -> None:
    with pytest.raises(ValueError, match="unit separator"):
        digest_uid("a\x1fb")
    with pytest.raises(ValueError, match="at least one"):
        digest_uid()


def test_other_weights_are_another_device() -> None:
    assert device_uid("aa") != device_uid("ab")
    assert device_uid("aa") == device_uid("aa")
