"""What the instances of one kind of result have in common; the kinds themselves stand in `dicom_io.objects.kinds`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResultKind:
    """One kind of result object.

    Attributes:
        name: How manifest, database and `[results]` call it.
        meaning: What it is and needs, in a sentence; the comment of its switch in `[results]`.
        sop_class_uid: SOP Class UID of its instances.
        modality: Modality of its series (PS3.3 C.7.3.1.1.1).
        series_number: Series Number; results come after what a scanner numbers.
        series_description: Series Description; the kinds differ in the first twelve characters, since viewers cut it.
        file_name: Name in the folder of the pack; `{}` stands for the number of an instance, from 1.
        by_default: Whether it is made unless the site switches it off.
        replaced: Whether it is not sent any more once a later job has results for the destination. The report is
            sent: its successor names it as predecessor.
        withdrawn: Whether the Key Object of a later job rejects it.
        made_by: Module that makes and checks its instances, as `dicom_io.objects.case.Maker`; loaded only where objects
            are encoded. Empty where it belongs to no pack, whose manifest lists it, but accompanies one.
        own: Attributes in which its instances differ, where there is one for each source slice; else empty.
        needs: Name of the kind that must go with it.
    """

    name: str
    meaning: str
    sop_class_uid: str
    modality: str
    series_number: int
    series_description: str
    file_name: str
    by_default: bool
    replaced: bool
    withdrawn: bool
    made_by: str = ""
    own: frozenset[str] = frozenset()
    needs: str = ""

    @property
    def listed(self) -> bool:
        """Whether it belongs to a pack, and stands in its manifest."""
        return bool(self.made_by)

    @property
    def of_each_slice(self) -> bool:
        """Whether there is one instance for each source slice, or else one for the case."""
        return bool(self.own)

    def __str__(self) -> str:
        return self.name

    def file(self, number: int = 1) -> str:
        """File name of an instance, relative to the pack."""
        return self.file_name.format(f"{number:04d}")
