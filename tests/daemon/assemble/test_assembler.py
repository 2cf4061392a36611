from __future__ import annotations

import copy
import errno
import json
import os
import random
import stat
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from ingest_support import Bench, data_set_bytes, encode, make_instance, make_series, meta_of
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag
from pydicom.uid import BasicTextSRStorage, generate_uid

from daemon import files
from daemon.assemble import follower, part10
from daemon.assemble.arrival import read_arrival
from daemon.assemble.assembler import Assembler
from daemon.assemble.gaps import TAGS
from daemon.assemble.handover import HandOver
from daemon.assemble.index import forget_study
from daemon.config.sections import Engine
from daemon.database.engine import make_engine, open_index
from daemon.database.tables import ARRIVALS, INSTANCES, OPEN_ASSOCIATIONS, SEGMENTS, InstanceState
from daemon.errors import Retryable
from daemon.receive.dataset import read_identity
from daemon.spool.backpressure import is_behind
from daemon.spool.segment import read_records
from daemon.spool.writer import SpoolWriter
from dicom_io.content.equipment import MANUFACTURER, MODEL_NAME


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def job_files(bench: Bench, job_id: str) -> dict[str, bytes]:
    """{SOP Instance UID: encoded data set} of a job's input."""
    files = sorted((bench.folder / "jobs" / job_id / "input").iterdir())
    return {str(dcmread(path).SOPInstanceUID): data_set_bytes(path) for path in files}


def states(bench: Bench) -> list[str]:
    return sorted(row.state for row in bench.rows(INSTANCES))


def own_result(study: str) -> object:
    dataset = make_instance(study, generate_uid(), 1, sop_class=BasicTextSRStorage)
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "SR", MANUFACTURER, MODEL_NAME
    del dataset.PixelData
    return dataset


def test_a_quiet_study_becomes_one_job_with_its_bytes(bench):
    series = make_series(7)
    bench.receive(series)
    assert bench.assembler.step(1009.0) == ()
    [arrival] = bench.assembler.step(1010.0)
    assert arrival.instances == 7
    assert arrival.study_uid == series[0].StudyInstanceUID
    assert arrival.series_uids == (series[0].SeriesInstanceUID,)
    assert arrival.supersedes is None
    assert job_files(bench, arrival.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}
    assert bench.arrivals == [arrival]
    assert bench.assembler.step(5000.0) == ()
    assert bench.arrivals == [arrival]


def test_what_is_fetched_waits_for_its_end_and_half_of_it_is_set_aside(bench):
    """However long the PACS is away; sent again, the study is reported."""
    series = make_series(6)
    study = str(series[0].StudyInstanceUID)
    fetched = {study}
    bench.assembler.fetching = lambda: set(fetched)
    bench.assembler.left_half = lambda uid: "a pull did not fetch all of it" if uid == study else ""
    bench.receive(series[:3])
    assert bench.assembler.step(1_000_000.0) == ()
    fetched.clear()
    [aside] = bench.assembler.step(1_000_001.0)
    assert (aside.instances, aside.set_aside) == (0, "a pull did not fetch all of it; sent again, it is tried again")
    assert states(bench) == ["set_aside"] * 3
    bench.assembler.left_half = lambda _uid: ""
    bench.receive(series, at=1_000_100.0, association="a2")
    [whole] = bench.assembler.step(1_000_110.0)
    assert (whole.instances, whole.set_aside) == (6, "")


def test_the_job_folder_is_for_the_user_alone(bench):
    bench.receive(make_series(2))
    [arrival] = bench.assembler.step(1010.0)
    for path in [arrival.folder, *arrival.folder.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "arrival.json", path
        assert path.is_dir() or path.name == "arrival.json" or stat.S_IMODE(path.stat().st_mode) == expected


def test_arrival_json_says_where_it_came_from(bench):
    series = make_series(3)
    bench.receive(series)
    [arrival] = bench.assembler.step(1010.0)
    record = json.loads((arrival.folder / "arrival.json").read_text())
    assert record["calling_aets"] == ["SENDER"]
    assert record["peers"] == ["127.0.0.1"]
    assert record["conflicts"] == []
    assert record["first_received"] == record["last_received"] == 1000.0
    assert {entry["sop_uid"] for entry in record["instances"]} == {d.SOPInstanceUID for d in series}
    assert all(len(entry["sha256"]) == 64 for entry in record["instances"])
    assert read_arrival(arrival.folder) == arrival


def test_an_open_association_holds_the_study_back(bench):
    series = make_series(3)
    bench.receive(series, end=False)
    assert bench.assembler.step(1100.0) == ()
    bench.writer.end_association("a1")
    assert len(bench.assembler.step(1101.0)) == 1


def test_an_association_that_stays_open_holds_it_back_only_so_long(bench):
    bench.receive(make_series(3), end=False)
    assert bench.assembler.step(1000.0 + 3599) == ()
    assert len(bench.assembler.step(1000.0 + 3600)) == 1


def test_an_association_of_another_study_does_not_hold_it_back(bench):
    first, second = make_series(3), make_series(3)
    bench.receive(first, association="a1")
    bench.receive(second, association="a2", end=False)
    [arrival] = bench.assembler.step(1100.0)
    assert arrival.study_uid == first[0].StudyInstanceUID


def test_a_receiver_that_died_leaves_its_associations_closed(bench):
    bench.receive(make_series(3), end=False)
    bench.assembler.step(1001.0)
    assert bench.assembler.step(1100.0) == ()
    bench.writer.close()  # the lock goes as it does with a killed process
    assert len(bench.assembler.step(1100.0)) == 1
    assert bench.rows(OPEN_ASSOCIATIONS) == []


def test_interleaved_studies_and_two_senders_of_one_series(bench):
    first, second = make_series(6), make_series(6)
    everything = [*first, *second]
    random.Random(3).shuffle(everything)
    bench.receive(everything[0::2], association="a1")
    bench.receive(everything[1::2], association="a2")
    arrivals = bench.assembler.step(1010.0)
    assert len(arrivals) == 2
    for series in (first, second):
        [arrival] = [entry for entry in arrivals if entry.study_uid == series[0].StudyInstanceUID]
        assert job_files(bench, arrival.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}


def test_the_job_name_depends_on_the_instances_not_on_their_order(tmp_path):
    series = make_series(5)
    names = []
    for number, order in enumerate((series, series[::-1])):
        (tmp_path / str(number)).mkdir()
        bench = Bench(tmp_path / str(number))
        bench.receive(order)
        [arrival] = bench.assembler.step(1010.0)
        names.append(arrival.job_id)
        bench.close()
    assert names[0] == names[1]


def test_late_slices_make_a_superseding_job_with_all_slices(bench):
    series = make_series(6)
    bench.receive(series[:4])
    [early] = bench.assembler.step(1010.0)
    bench.receive(series[4:], at=2000.0, association="a2")
    [late] = bench.assembler.step(2010.0)
    assert late.supersedes == early.job_id
    assert late.job_id != early.job_id
    assert job_files(bench, late.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}


def test_late_slices_find_the_earlier_ones_when_their_segment_is_gone(bench):
    series = make_series(6)
    bench.receive(series[:4])
    [early] = bench.assembler.step(1010.0)
    bench.writer.close()
    bench.assembler.step(1011.0)
    assert bench.assembler.reclaim() > 0
    assert list((bench.folder / "spool").iterdir()) == []
    bench.writer = SpoolWriter(bench.folder / "spool")
    bench.receive(series[4:], at=2000.0, association="a2")
    [late] = bench.assembler.step(2010.0)
    assert late.supersedes == early.job_id
    assert job_files(bench, late.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}


def test_the_same_bytes_again_start_nothing(bench):
    series = make_series(4)
    bench.receive([*series, *series])
    [arrival] = bench.assembler.step(1010.0)
    assert arrival.instances == 4
    bench.receive(series, at=3000.0, association="a2")
    assert bench.assembler.step(4000.0) == ()
    rows = bench.rows(INSTANCES)
    assert (len(rows), sum(row.copies - 1 for row in rows), {row.job_id for row in rows}) == (4, 8, {arrival.job_id})


def test_a_resend_after_the_segment_is_gone_starts_nothing(bench):
    series = make_series(4)
    bench.receive(series)
    bench.assembler.step(1010.0)
    bench.writer.close()
    bench.assembler.step(1011.0)
    bench.assembler.reclaim()
    bench.writer = SpoolWriter(bench.folder / "spool")
    bench.receive(series, at=3000.0, association="a2")
    assert bench.assembler.step(4000.0) == ()


def test_a_purged_study_that_is_sent_again_starts_a_new_job(bench):
    series = make_series(2)
    bench.receive(series)
    [arrival] = bench.assembler.step(1010.0)
    forget_study(bench.engine, arrival.study_uid)
    bench.receive(series, at=3000.0, association="a2")
    assert len(bench.assembler.step(3010.0)) == 1


def test_same_uid_other_bytes_is_a_conflict_kept_and_reported(bench):
    series = make_series(3)
    other = copy.deepcopy(series[1])
    other.PatientID = "SOMEONE ELSE"
    bench.receive([*series, other])
    [arrival] = bench.assembler.step(1010.0)
    assert job_files(bench, arrival.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}
    record = json.loads((arrival.folder / "arrival.json").read_text())
    assert [entry["sop_uid"] for entry in record["conflicts"]] == [series[1].SOPInstanceUID]
    [kept] = (bench.folder / "conflicts").iterdir()
    assert data_set_bytes(kept) == encode(other)


def test_a_conflict_after_the_job_is_kept_and_starts_nothing(bench):
    series = make_series(3)
    bench.receive(series)
    bench.assembler.step(1010.0)
    other = copy.deepcopy(series[1])
    other.PatientID = "SOMEONE ELSE"
    bench.receive([other], at=2000.0, association="a2")
    assert bench.assembler.step(3000.0) == ()
    [kept] = (bench.folder / "conflicts").iterdir()
    assert data_set_bytes(kept) == encode(other)
    assert states(bench).count(InstanceState.CONFLICT) == 1
    bench.writer.close()
    bench.assembler.step(3001.0)
    assert bench.assembler.reclaim() > 0


def test_own_results_never_start_work(bench):
    series = make_series(3)
    study = series[0].StudyInstanceUID
    bench.receive(series)
    [arrival] = bench.assembler.step(1010.0)
    bench.receive([*series, own_result(study)], at=2000.0, association="a2")
    assert bench.assembler.step(3000.0) == ()
    assert bench.arrivals == [arrival]
    assert states(bench).count(InstanceState.OWN_RESULT) == 1


def test_an_own_result_alone_makes_no_job(bench):
    bench.receive([own_result(generate_uid())])
    assert bench.assembler.step(9000.0) == ()
    assert states(bench) == [InstanceState.OWN_RESULT]


def test_a_study_without_images_makes_a_job(bench):
    dataset = own_result(generate_uid())
    dataset.Manufacturer = "Another"
    bench.receive([dataset])
    [arrival] = bench.assembler.step(1010.0)
    assert arrival.instances == 1


def test_a_retryable_submit_is_called_again(bench):
    calls = []

    def submit(arrival):
        calls.append(arrival.job_id)
        if len(calls) == 1:
            raise Retryable("the queue is busy")

    assembler = bench.assembler = Assembler(bench.settings, bench.engine, submit)
    assembler.recover(0.0)
    bench.receive(make_series(2))
    assert assembler.step(1010.0) == ()
    assert len(assembler.step(1010.5)) == 1
    assert len(calls) == 2
    assert calls[0] == calls[1]


class PowerCut(BaseException):
    """Stands for the end of the process at this point."""


@pytest.mark.parametrize(
    ("of", "place"), [(HandOver, "_publish"), (HandOver, "_note_arrival"), (Assembler, "_note_submitted")]
)
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_anywhere_hands_over_exactly_once(bench, monkeypatch, of, place, before):
    """Killed before or after each durable step: after the restart there is one job folder and one submitted job."""
    series = make_series(3)
    bench.receive(series)
    real = getattr(of, place)

    def crash(self, *arguments):
        if not before:
            real(self, *arguments)
        raise PowerCut

    monkeypatch.setattr(of, place, crash)
    with pytest.raises(PowerCut):
        bench.assembler.step(1010.0)
    monkeypatch.setattr(of, place, real)
    restarted = bench.new_assembler()
    restarted.step(1011.0)
    restarted.step(5000.0)
    assert len({arrival.job_id for arrival in bench.arrivals}) == 1
    assert [path.name for path in (bench.folder / "jobs").iterdir()] == [bench.arrivals[0].job_id]
    assert job_files(bench, bench.arrivals[0].job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}
    assert [row.submitted for row in bench.rows(ARRIVALS)] == [True]


def test_the_index_is_rebuilt_from_what_is_on_disk(bench):
    """The database is lost: the same jobs come out, a resend still starts nothing, late slices still supersede."""
    series = make_series(4)
    bench.receive(series)
    [arrival] = bench.assembler.step(1010.0)
    waiting = make_series(2)
    bench.receive(waiting, at=1020.0, association="a2")
    bench.assembler.step(1020.0)
    before = sorted((row.sop_uid, row.sha256, row.state, row.job_id or "", row.file) for row in bench.rows(INSTANCES))
    with bench.engine.begin() as connection:
        for table in (INSTANCES, ARRIVALS, SEGMENTS, OPEN_ASSOCIATIONS):
            connection.execute(table.delete())
    restarted = bench.new_assembler(at=1020.0)
    restarted.step(1021.0)
    assert bench.arrivals == [arrival, arrival], "submitting again is harmless: the job's name is the same"
    after = sorted((row.sop_uid, row.sha256, row.state, row.job_id or "", row.file) for row in bench.rows(INSTANCES))
    assert after == before
    [second] = restarted.step(1030.0)
    assert second.study_uid == waiting[0].StudyInstanceUID
    bench.receive(series, at=2000.0, association="a3")
    assert restarted.step(3000.0) == ()


def test_a_torn_tail_is_set_aside_and_the_rest_is_served(bench):
    series = make_series(3)
    bench.receive(series, end=False)
    bench.writer.close()
    [segment] = (bench.folder / "spool").glob("*.seg")
    tail = b"\xb6G3R half a record"
    with segment.open("ab") as file:
        file.write(tail)
    restarted = bench.new_assembler()
    [arrival] = restarted.step(1010.0)
    assert job_files(bench, arrival.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}
    [aside] = (bench.folder / "damaged").iterdir()
    assert aside.read_bytes() == tail


def test_a_damaged_instance_is_reported_and_its_resend_mends_the_study(bench):
    series = make_series(3)
    bench.receive(series)
    bench.assembler.step(1001.0)
    victim = next(row for row in bench.rows(INSTANCES) if row.sop_uid == series[1].SOPInstanceUID)
    path = bench.folder / "spool" / victim.segment
    with path.open("r+b") as file:
        file.seek(victim.data_offset + victim.data_length - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    [first] = bench.assembler.step(1010.0)
    assert first.instances == 2
    assert states(bench).count(InstanceState.DAMAGED) == 1
    bench.receive([series[1]], at=2000.0, association="a2")
    [second] = bench.assembler.step(2010.0)
    assert second.supersedes == first.job_id
    assert job_files(bench, second.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}


def test_a_full_disk_keeps_the_study_waiting(bench, monkeypatch):
    import daemon.assemble.handover as module

    bench.receive(make_series(2))
    real = module.write_instance

    def full(path: Path, row: object, spool: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_instance", full)
    assert bench.assembler.step(1010.0) == ()
    assert [path for path in (bench.folder / "jobs").iterdir()] == []
    monkeypatch.setattr(module, "write_instance", real)
    assert bench.assembler.step(1011.0) == (), "not at once"
    assert len(bench.assembler.step(1050.0)) == 1


def test_after_a_restart_the_quiet_time_begins_anew(bench):
    """A sender that was cut off by the restart gets the time to come back."""
    bench.receive(make_series(2), end=False)
    bench.writer.close()
    assembler = Assembler(bench.settings, bench.engine, bench.arrivals.append)
    assembler.recover(5000.0)
    assert assembler.step(5009.0) == ()
    assert len(assembler.step(5010.0)) == 1


def test_reclaim_keeps_what_is_still_needed(bench):
    bench.receive(make_series(2))
    bench.writer.close()
    bench.assembler.step(1001.0)
    assert bench.assembler.reclaim() == 0
    assert len(list((bench.folder / "spool").glob("*.seg"))) == 1
    bench.assembler.step(1010.0)
    assert bench.assembler.reclaim() > 0


def test_two_thousand_instances(bench):
    bench.writer.sync = lambda _: None  # durability is not the question here
    template = make_series(1, rows=4)[0]
    raw, uid = encode(template), str(template.SOPInstanceUID)
    sent = {f"{uid[:-4]}{number:04d}" for number in range(2000)}
    for new in sorted(sent):
        meta = replace(meta_of(template), sop_instance_uid=new)
        bench.writer.append(meta, [raw.replace(uid.encode(), new.encode())])
    bench.writer.end_association("a1")
    bench.assembler.look(1000.0)
    [arrival] = bench.assembler.step(1010.0)
    assert arrival.instances == 2000
    files = (bench.folder / "jobs" / arrival.job_id / "input").iterdir()
    assert {str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in files} == sent


def test_writer_of_another_process_is_followed_too(bench):
    """Two receivers write one study."""
    series = make_series(4)
    other = SpoolWriter(bench.folder / "spool", receiver="00000000000000000009-1")
    bench.receive(series[:2])
    for dataset in series[2:]:
        other.append(meta_of(dataset, association="b1"), [encode(dataset)])
    assert bench.assembler.step(1001.0) == ()
    assert bench.assembler.step(1012.0) == ()
    other.end_association("b1")
    [arrival] = bench.assembler.step(1012.0)
    assert arrival.instances == 4
    other.close()


# --- the pipeline is behind


def test_while_the_pipeline_is_behind_studies_stay_in_the_spool_and_senders_are_told(tmp_path):
    waiting = 2
    bench = Bench(tmp_path, max_waiting_jobs=3)
    bench.assembler = Assembler(
        bench.settings, bench.engine, bench.arrivals.append, waiting=lambda: waiting + len(bench.arrivals)
    )
    bench.assembler.recover(0.0)
    studies = [make_series(2) for _ in range(3)]
    for number, series in enumerate(studies):
        bench.receive(series, at=1000.0 + number, association=f"a{number}")
    assert [arrival.study_uid for arrival in bench.assembler.step(2000.0)] == [studies[0][0].StudyInstanceUID]
    assert bench.assembler.step(2001.0) == ()
    assert is_behind(tmp_path / "spool")
    assert len(list((tmp_path / "jobs").iterdir())) == 1, "what waits is on the disk once"
    waiting = 0
    later = [*bench.assembler.step(2002.0), *bench.assembler.step(2003.0)]
    assert [arrival.study_uid for arrival in later] == [series[0].StudyInstanceUID for series in studies[1:]]
    assert not is_behind(tmp_path / "spool") or len(bench.arrivals) == 3
    waiting = -3
    bench.assembler.step(2004.0)
    assert not is_behind(tmp_path / "spool")
    bench.close()


def test_two_hosts_on_one_database_do_not_see_each_others_spool(tmp_path):
    """The index names places in a host's own files; another host would find nothing there and count it as lost."""
    shared = make_engine(f"sqlite:///{tmp_path / 'shared.sqlite'}")
    hosts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name)
        settings = bench.settings.model_copy(update={"engine": Engine(database_url="postgresql://one/for_all")})
        bench.engine.dispose()
        bench.engine = open_index(settings, shared)
        bench.assembler = bench.new_assembler()
        hosts.append(bench)
    first, second = make_series(3), make_series(3)
    hosts[0].receive(first)
    hosts[1].receive(second)
    for bench, series in zip(hosts, (first, second), strict=True):
        [arrival] = bench.assembler.step(1010.0)
        assert job_files(bench, arrival.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}
        assert states(bench) == [InstanceState.HANDED_OVER] * 3
    assert open_index(hosts[0].settings, shared) is shared, "one host: one database"
    for bench in hosts:
        bench.close()
    shared.dispose()


# --- what senders make up


ODD = (
    "",
    " ",
    "abc",
    "1e999",
    "nan",
    "-inf",
    "0",
    "1\\2",
    "1\\0\\0\\0\\1\\nan",
    "9" * 20,
    "\\\\",
    "1\\0\\0\\0\\1",
    "1\\2\\inf",
)
USUAL = {
    "AcquisitionNumber": "1",
    "ImagePositionPatient": "0\\0\\{}",
    "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
    "ImagesInAcquisition": "8",
}


@pytest.mark.parametrize("seed", range(12))
def test_nothing_that_was_accepted_stops_the_assembler(bench, seed):
    """Values that break their rules, and bytes changed behind the UIDs: such a study is handed over like any other."""
    chance = random.Random(seed)
    assert set(USUAL) == set(TAGS)
    study = generate_uid()
    sent = 0
    for number, dataset in enumerate(make_series(8, study=study)):
        raw = bytearray(encode(dataset))
        odd = b""
        for keyword, usual in USUAL.items():
            value = (chance.choice(ODD) if chance.random() < 0.3 else usual.format(number)).encode()
            value += b" " * (len(value) % 2)
            group, element = divmod(int(Tag(keyword)), 1 << 16)
            odd += struct.pack("<HH2sH", group, element, dictionary_VR(keyword).encode(), len(value)) + value
        place = raw.index(b"\x28\0\x02\0US")  # Samples per Pixel follows
        raw[place:place] = odd
        if chance.random() < 0.5:
            behind = raw.index(str(dataset.SeriesInstanceUID).encode()) + 70
            for _ in range(5):
                raw[chance.randrange(behind, len(raw))] = chance.randrange(256)
        if number % 3 == 0:
            raw = raw[: chance.randrange(len(raw) // 2, len(raw))]
        identity = read_identity(raw, "1.2.840.10008.1.2.1")
        assert identity.study_uid == study
        bench.writer.append(meta_of(dataset), [raw])
        sent += 1
    bench.writer.end_association("a1")
    bench.assembler.look(1000.0)
    [arrival] = bench.assembler.step(9000.0)
    assert arrival.instances == sent


def test_room_that_a_killed_receiver_prepared_is_given_back(bench):
    """A live receiver's is left alone."""
    alive = bench.folder / "spool" / f".{bench.writer.receiver}-000001.spare"
    dead = bench.folder / "spool" / ".00000000000000000001-1-000001.spare"
    for path in (alive, dead):
        path.write_bytes(b"")
    bench.assembler.reclaim()
    assert alive.exists()
    assert not dead.exists()


@pytest.mark.parametrize("indexed", [False, True])
def test_a_sector_that_cannot_be_read_costs_one_instance(bench, monkeypatch, indexed):
    """The others of the study are handed over, and the daemon goes on; a resend mends it."""
    series = make_series(3)
    bench.receive(series, look=False)
    bench.writer.close()
    [segment] = (bench.folder / "spool").glob("*.seg")
    bad = list(read_records(segment, final=True))[1].data_offset
    if indexed:
        bench.assembler.step(1001.0)

    def refuse(offset: int, length: int) -> None:
        if offset <= bad < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    real_pread, real_read = os.pread, files.read_data

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        refuse(offset, length)
        return real_pread(descriptor, length, offset)

    def read_data(path: Path, offset: int, length: int) -> bytes:
        refuse(offset, length)
        return real_read(path, offset, length)

    monkeypatch.setattr(os, "pread", pread)
    for module in (part10, follower):
        monkeypatch.setattr(module, "read_data", read_data)
    bench.assembler.look(1000.0)
    [arrival] = bench.assembler.step(1100.0)
    assert arrival.instances == 2
    bench.writer = SpoolWriter(bench.folder / "spool")
    monkeypatch.undo()
    bench.receive([series[1]], at=2000.0, association="a2")
    [mended] = bench.assembler.step(2010.0)
    assert job_files(bench, mended.job_id) == {str(d.SOPInstanceUID): encode(d) for d in series}
