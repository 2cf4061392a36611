"""What a bad client can do to the receiver: nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_sender import (
    MR,
    RawSender,
    associate_request,
    command_set,
    message,
    pdu,
    read_status,
    rejection,
    store_request,
)
from ingest_support import InProcess, associate, encode, instances_in, make_series, save, storescu, wait_until
from pynetdicom import AE

import daemon.receive.association as blocking
import daemon.receive.dataset as dataset_module
import daemon.receive.transport as stream
from daemon.receive import slots
from daemon.receive.store import Status

# pynetdicom, the client here, forgets to close a socket whose shutdown fails; our own handles are counted below.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <(ssl|socket)")

_INSTANCE = make_series(1, rows=8)[0]
GOOD, UID = encode(_INSTANCE), str(_INSTANCE.SOPInstanceUID)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    receiver = InProcess(tmp_path_factory.mktemp("hostile"), idle_seconds=5)
    yield receiver
    receiver.stop(0.5)


def good_instance_is_taken(receiver: InProcess) -> None:
    dataset = make_series(1, rows=8)[0]
    with RawSender(receiver.address) as sender:
        assert sender.associate() == 2
        assert sender.store(str(dataset.SOPInstanceUID), encode(dataset)) == Status.SUCCESS
        assert sender.release() == 6


def last_pdu(receiver: InProcess, *pieces: bytes, half_close: bool = False) -> tuple[int, bytes] | None:
    """Send and return the last PDU that comes back, None where the connection just ends."""
    with RawSender(receiver.address, timeout=10) as sender:
        for piece in pieces:
            sender.socket.sendall(piece)
        if half_close:
            sender.socket.shutdown(socket.SHUT_WR)
        last = None
        while True:
            try:
                last = sender.read_pdu()
            except ConnectionError:
                return last


ASSOCIATE = associate_request({1: MR})
LENGTHS = (0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
COMMAND = store_request(UID, 1)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        pytest.param([b"GET / HTTP/1.1\r\n\r\n"], 1, id="another protocol"),
        pytest.param([pdu(4, b"")], 2, id="data before the association"),
        pytest.param([struct.pack(">BxL", 1, 1 << 30)], 6, id="a huge request"),
        pytest.param([pdu(1, b"\0" * 100)], 6, id="a request that is none"),
        pytest.param([ASSOCIATE, ASSOCIATE], 2, id="a second request"),
        pytest.param([ASSOCIATE, struct.pack(">BxL", 4, 0xFFFFFFFF)], 6, id="a huge PDU"),
        pytest.param([ASSOCIATE, pdu(4, struct.pack(">LBB", 1000, 1, 3) + b"x")], 6, id="an item longer than its PDU"),
        pytest.param([ASSOCIATE, pdu(4, struct.pack(">LBB", 1, 1, 3))], 6, id="an item without control header"),
        pytest.param([ASSOCIATE, pdu(4, b"abc")], 6, id="a PDU shorter than an item"),
        pytest.param([ASSOCIATE, *message(9, COMMAND)], 6, id="a context that was not accepted"),
        pytest.param([ASSOCIATE, pdu(4, struct.pack(">LBB", 3, 1, 2) + b"x")], 6, id="a data set without command"),
        pytest.param([ASSOCIATE, *message(1, b"rubbish!")], 6, id="a command set that is none"),
        pytest.param([ASSOCIATE, *message(1, command_set((0x0100, 1)))], 6, id="a command without message id"),
        pytest.param([ASSOCIATE, *message(1, COMMAND * 2000)], 6, id="an endless command set"),
        pytest.param([ASSOCIATE, message(1, COMMAND)[0], pdu(5, bytes(4))], 2, id="a release within a message"),
    ],
)
def test_what_breaks_the_protocol_is_aborted_with_the_reason(receiver, pieces, reason):
    kind, body = last_pdu(receiver, *pieces)
    assert kind == 7, "A-ABORT"
    assert body[2:] == bytes((2, reason)), "source: service provider"
    good_instance_is_taken(receiver)


def test_an_unknown_command_is_answered_unrecognized(receiver):
    find = command_set((0x0002, MR), (0x0100, 0x0020), (0x0110, 5), (0x0800, 0x0101))
    with RawSender(receiver.address) as sender:
        sender.associate()
        sender.socket.sendall(b"".join(message(1, find)))
        kind, body = sender.read_pdu()
        assert kind == 4
        assert struct.pack("<HHLH", 0, 0x0900, 2, 0x0211) in body
        assert sender.release() == 6


def test_fragments_of_one_byte(receiver):
    dataset = make_series(1, rows=8)[0]
    with RawSender(receiver.address) as sender:
        sender.associate()
        for part in message(1, store_request(str(dataset.SOPInstanceUID), 1), encode(dataset), max_pdu=7):
            sender.socket.sendall(part)
        kind, body = sender.read_pdu()
        assert kind == 4
        assert struct.pack("<HHLH", 0, 0x0900, 2, 0) in body
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(receiver.spool)}
    assert stored[str(dataset.SOPInstanceUID)] == encode(dataset)


def test_bytes_that_trickle_in(receiver):
    dataset = make_series(1, rows=8)[0]
    everything = b"".join(message(1, store_request(str(dataset.SOPInstanceUID), 1), encode(dataset)))
    with RawSender(receiver.address) as sender:
        sender.associate()
        for at in range(0, len(everything), 37):
            sender.socket.sendall(everything[at : at + 37])
        assert sender.read_pdu()[0] == 4


def test_a_sender_that_falls_silent_within_an_instance_is_aborted(tmp_path):
    receiver = InProcess(tmp_path, idle_seconds=0.5)
    with RawSender(receiver.address) as sender:
        sender.associate()
        sender.socket.sendall(message(1, COMMAND, GOOD)[0])
        kind, body = sender.read_pdu()
        assert (kind, body[2]) == (7, 0)
    receiver.stop(0.5)
    assert instances_in(receiver.spool) == []


@pytest.mark.parametrize("where", ["in the request", "in an instance"])
def test_a_sender_whose_bytes_trickle_for_ever_is_aborted(tmp_path, monkeypatch, where):
    """It is never silent for long, yet it holds an association only as long as its bytes allow."""
    monkeypatch.setattr(blocking, "ARTIM_SECONDS", 0.6)
    receiver = InProcess(tmp_path, idle_seconds=0.6)
    with RawSender(receiver.address) as sender:
        slow = ASSOCIATE
        if where == "in an instance":
            assert sender.associate() == 2
            sender.socket.sendall(message(1, COMMAND)[0])
            slow = b"".join(pdu(4, struct.pack(">LBB", 3, 1, 0) + b"x") for _ in range(100))
        began = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011 - reset or broken pipe, as it comes
            trickle(sender.socket, slow)
        assert time.monotonic() - began > 0.5
    wait_until(lambda: not receiver.receiver.slots)
    good_instance_is_taken(receiver)
    receiver.stop(0.5)


def trickle(connection: socket.socket, data: bytes) -> None:
    """Four bytes every tenth of a second, for 20 s at most."""
    for at in range(0, 800, 4):
        connection.sendall(data[at : at + 4])
        time.sleep(0.1)


def test_an_instance_beyond_the_limit_is_aborted(receiver, monkeypatch):
    monkeypatch.setattr(stream, "MAX_INSTANCE_BYTES", 100_000)
    kind, _ = last_pdu(receiver, ASSOCIATE, *message(1, COMMAND, bytes(200_000), max_pdu=20_000))
    assert kind == 7


def test_a_large_instance_that_comes_slowly_holds_nobody_up(tmp_path, monkeypatch):
    """What goes beyond a part in memory waits in a file, so that any number may be under way at once."""
    monkeypatch.setattr(stream, "MEMORY_BYTES", 300_000)
    receiver = InProcess(tmp_path)
    series = make_series(3, rows=512)
    parts = [message(1, store_request(str(d.SOPInstanceUID), 1), encode(d)) for d in series]
    with (
        RawSender(receiver.address) as first,
        RawSender(receiver.address) as second,
        RawSender(receiver.address) as last,
    ):
        for sender in (first, second, last):
            assert sender.associate() == 2
        for sender, mine in ((first, parts[0]), (second, parts[1])):
            for part in mine[:-1]:
                sender.socket.sendall(part)
        assert last.store(str(series[2].SOPInstanceUID), encode(series[2])) == Status.SUCCESS
        for sender, mine in ((first, parts[0]), (second, parts[1])):
            sender.socket.sendall(mine[-1])
            kind, body = sender.read_pdu()
            assert (kind, read_status(body[6:])) == (4, Status.SUCCESS)
    receiver.stop(0.5)
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(receiver.spool)}
    assert stored == {str(d.SOPInstanceUID): encode(d) for d in series}
    assert not [path for path in receiver.spool.iterdir() if path.suffix not in (".seg", ".lock")]


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_large_instance_for_which_there_is_no_room_is_refused_when_it_is_through(tmp_path, monkeypatch, where):
    """The association goes on; what came before on it is kept."""
    monkeypatch.setattr(stream, "MEMORY_BYTES", 300_000)
    receiver = InProcess(tmp_path)
    small, large = make_series(1)[0], make_series(1, rows=512)[0]
    real = stream.write_all

    def full(descriptor, parts, offset):
        if where == "before" or offset > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, parts, offset)

    monkeypatch.setattr(stream, "write_all", full)
    with RawSender(receiver.address) as sender:
        assert sender.associate() == 2
        assert sender.store(str(large.SOPInstanceUID), encode(large)) == Status.OUT_OF_RESOURCES
        assert sender.store(str(small.SOPInstanceUID), encode(small)) == Status.SUCCESS
    receiver.stop(0.5)
    assert [r.meta["sop_instance_uid"] for r, _ in instances_in(receiver.spool)] == [small.SOPInstanceUID]


def test_uids_behind_a_large_private_element_are_found(tmp_path, monkeypatch):
    """They are not in the part that is in memory."""
    monkeypatch.setattr(stream, "MEMORY_BYTES", 300_000)
    receiver = InProcess(tmp_path)
    dataset = make_series(1)[0]
    dataset.add_new(0x00090010, "LO", "ELSEWHERE")
    dataset.add_new(0x00091001, "OB", bytes(1_000_000))
    with RawSender(receiver.address) as sender:
        assert sender.associate() == 2
        assert sender.store(str(dataset.SOPInstanceUID), encode(dataset)) == Status.SUCCESS
    receiver.stop(0.5)


def test_a_data_set_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAX_INFLATED_BYTES", 1 << 20)
    receiver = InProcess(tmp_path)
    dataset = make_series(1)[0]

    def deflated(extra):
        deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        return deflater.compress(encode(dataset)) + deflater.compress(bytes(extra)) + deflater.flush()

    with RawSender(receiver.address) as sender:
        sender.socket.sendall(associate_request({1: MR}, syntax="1.2.840.10008.1.2.1.99"))
        assert sender.read_pdu()[0] == 2
        assert sender.store(str(dataset.SOPInstanceUID), deflated(4 << 20)) == Status.CANNOT_UNDERSTAND
        assert sender.store(str(dataset.SOPInstanceUID), deflated(0)) == Status.SUCCESS
    receiver.stop(0.5)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_pdus_neither_crash_nor_hang(receiver, data):
    """2,000 of them by `-m slow`, see below."""
    one_mutation(receiver, random.Random(data.draw(st.integers(0, 2**32))))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_mutations(receiver):
    """Half of them anywhere in the conversation, half only in the data set, so that they come as far as the checks."""
    good_instance_is_taken(receiver)
    wait_until(lambda: not receiver.receiver.slots)
    gc.collect()
    handles, threads = open_handles(), threading.active_count()
    for seed in range(1000):
        one_mutation(receiver, random.Random(seed))
        one_mutated_data_set(receiver, random.Random(seed))
        if seed % 100 == 0:
            good_instance_is_taken(receiver)
    wait_until(lambda: not receiver.receiver.slots)
    gc.collect()
    wait_until(lambda: open_handles() <= handles + 1 and threading.active_count() <= threads + 1)
    good_instance_is_taken(receiver)


def open_handles() -> int:
    """File handles of this process, in which the receiver runs."""
    return len(list(Path("/proc/self/fd").iterdir()))


def one_mutation(receiver: InProcess, chance: random.Random) -> None:
    """Change, cut or repeat bytes anywhere in a whole conversation, and see the connection end."""
    conversation = bytearray(b"".join([ASSOCIATE, *message(1, COMMAND, GOOD, max_pdu=256), pdu(5, bytes(4))]))
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(conversation))
        match chance.randrange(4):
            case 0:
                conversation[place] = chance.randrange(256)
            case 1:
                del conversation[place : place + chance.randint(1, 20)]
            case 2:
                conversation[place:place] = chance.randbytes(chance.randint(1, 20))
            case _:
                conversation[place : place + 4] = struct.pack(">L", chance.choice(LENGTHS))
    with RawSender(receiver.address, timeout=20) as sender:
        try:
            sender.socket.sendall(conversation)
            sender.socket.shutdown(socket.SHUT_WR)
            while sender.socket.recv(65536):
                pass
        except OSError:  # aborted while we were still sending
            pass


def one_mutated_data_set(receiver: InProcess, chance: random.Random) -> None:
    """Change, cut or lengthen the data set within sound PDUs: it is answered, whatever it holds."""
    data = bytearray(GOOD)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(min(len(data), 600)) if len(data) > 1 else 0
        match chance.randrange(4):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                del data[place : place + chance.choice((1, 8, len(data)))]
                data += b"\0" * (not data)
            case 2:
                data[place:place] = chance.randbytes(chance.randint(1, 20))
            case _:
                data[place : place + 4] = struct.pack("<L", chance.choice(LENGTHS))
    with RawSender(receiver.address, timeout=20) as sender:
        assert sender.associate() == 2
        assert sender.store(UID, bytes(data)) in set(Status)
        assert sender.release() == 6


def test_mutated_data_sets_are_answered(receiver):
    for seed in range(50):
        one_mutated_data_set(receiver, random.Random(seed))
    good_instance_is_taken(receiver)


def test_after_all_that_nothing_is_left_open(receiver):
    good_instance_is_taken(receiver)
    wait_until(lambda: not receiver.receiver.slots)
    gc.collect()
    handles = open_handles()
    for seed in range(50):
        one_mutation(receiver, random.Random(seed))
    wait_until(lambda: not receiver.receiver.slots)
    wait_until(lambda: open_handles() <= handles + 1)
    good_instance_is_taken(receiver)


def test_fifty_associations_at_once(receiver):
    """All of them are open before the first sends, and all send at the same time."""
    together = threading.Barrier(50)
    sent: dict[str, bytes] = {}

    def send(series: list) -> None:
        with RawSender(receiver.address, timeout=60) as sender:
            assert sender.associate() == 2
            together.wait(60)
            for dataset in series:
                uid, data = str(dataset.SOPInstanceUID), encode(dataset)
                assert sender.store(uid, data) == Status.SUCCESS
                sent[uid] = data
            together.wait(60)
            assert sender.release() == 6

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(send, [make_series(4, rows=8) for _ in range(50)]))
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(receiver.spool)}
    assert len(sent) == 200
    assert {uid: stored.get(uid) for uid in sent} == sent


@pytest.fixture
def impatient(monkeypatch):
    """The same rules, quicker."""
    for name in ("SILENT_SECONDS", "IDLE_SECONDS", "SLOW_SECONDS"):
        monkeypatch.setattr(slots, name, 0.2)


def test_connections_that_ask_for_nothing_are_bounded_and_keep_nobody_out(tmp_path, impatient):
    receiver = InProcess(tmp_path, max_associations=1)
    idle = [socket.create_connection(receiver.address) for _ in range(160)]
    good_instance_is_taken(receiver)
    wait_until(lambda: len(receiver.receiver.slots) <= 34)
    for connection in idle:
        connection.close()
    wait_until(lambda: not receiver.receiver.slots)
    receiver.stop(0.5)


@pytest.mark.parametrize("how", ["idle", "slow"])
def test_associations_that_do_nothing_give_way_to_one_that_does(tmp_path, impatient, how):
    receiver = InProcess(tmp_path, max_associations=5)
    with contextlib.ExitStack() as stack:
        hostile = [stack.enter_context(RawSender(receiver.address)) for _ in range(5)]
        for sender in hostile:
            assert sender.associate() == 2
        stop = threading.Event()
        if how == "slow":
            for sender in hostile:
                sender.socket.sendall(message(1, COMMAND)[0])
            thread = threading.Thread(target=drip, args=([s.socket for s in hostile], stop))
            thread.start()
            stack.callback(lambda: (stop.set(), thread.join(10)))
        good_instance_is_taken(receiver)
        assert sum(not is_closed(s.socket) for s in hostile) == 4, "one of them had to go"
    receiver.stop(0.5)


def drip(connections: list[socket.socket], stop: threading.Event) -> None:
    """A fragment of one byte every 50 ms: 2 KiB/s and less."""
    while not stop.wait(0.05):
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(pdu(4, struct.pack(">LBB", 3, 1, 0) + b"x"))


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has said that it is over."""
    connection.settimeout(0.2)
    try:
        return connection.recv(100) is not None
    except TimeoutError:
        return False
    except OSError:
        return True


def test_an_association_at_work_is_not_pushed_out(tmp_path, impatient, monkeypatch):
    """It only waits for us: the disk is slow."""
    monkeypatch.setattr(slots, "ADMIT_SECONDS", 1.0)
    receiver = InProcess(tmp_path, max_associations=1)
    dataset = make_series(1)[0]
    under_way, go_on = threading.Event(), threading.Event()
    real = receiver._writer.sync

    def sync(descriptor):
        under_way.set()
        go_on.wait(30)
        real(descriptor)

    receiver._writer.sync = sync
    with ThreadPoolExecutor(1) as pool, RawSender(receiver.address, timeout=60) as sender:
        assert sender.associate() == 2
        status = pool.submit(sender.store, str(dataset.SOPInstanceUID), encode(dataset))
        assert under_way.wait(30)
        assert rejection(receiver.address) == (2, 3, 2)
        go_on.set()
        assert status.result(30) == Status.SUCCESS
    receiver.stop(0.5)


# --- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Iterator[Path]:
    """An authority, and a certificate for each end."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test ca")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2",
        )  # fmt: skip
    openssl("req", "-x509", *new_key, "-keyout", "stranger.key", "-out", "stranger.pem", "-days", "2", "-subj", "/CN=x")
    yield folder
    gc.collect()  # here, where it is known what pynetdicom leaves open


def store_by_tls(address: tuple[str, int], certificates: Path, *, with_certificate: bool) -> int | None:
    """Status of one C-STORE, None where no association came about."""
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.check_hostname = False
    if with_certificate:
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(MR, ["1.2.840.10008.1.2.1"])
    association = entity.associate(*address, ae_title="BRAINGEMMA", tls_args=(context, None))
    if not association.is_established:
        return None
    status = association.send_c_store(make_series(1, rows=256)[0]).Status
    association.release()
    return status


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(tmp_path, certificates, mutual):
    tls = {"cert": certificates / "server.pem", "key": certificates / "server.key"}
    receiver = InProcess(tmp_path, tls={**tls, "ca": certificates / "ca.pem"} if mutual else tls)
    assert store_by_tls(receiver.address, certificates, with_certificate=True) == Status.SUCCESS
    without = store_by_tls(receiver.address, certificates, with_certificate=False)
    assert without == (None if mutual else Status.SUCCESS)
    with associate(receiver.address) as plain:
        assert not plain.is_established
    receiver.stop(0.5)


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_with_dcmtk(tmp_path, certificates, mutual):
    """Another TLS client than Python's: with a certificate of the authority, without one, and with a stranger's."""
    tls = {"cert": certificates / "server.pem", "key": certificates / "server.key"}
    receiver = InProcess(tmp_path, tls={**tls, "ca": certificates / "ca.pem"} if mutual else tls)
    series = make_series(3, rows=256)
    files = [save(dataset, tmp_path / f"{number}.dcm") for number, dataset in enumerate(series)]
    trust = ("+cf", str(certificates / "ca.pem"))
    known = ("+tls", str(certificates / "client.key"), str(certificates / "client.pem"))
    stranger = ("+tls", str(certificates / "stranger.key"), str(certificates / "stranger.pem"))
    for credentials, welcome in ((known, True), (("+tla",), not mutual), (stranger, not mutual)):
        done = storescu(receiver.address, files, *credentials, *trust)
        assert (done.returncode == 0) is welcome, done.stderr
    receiver.stop(0.5)
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(receiver.spool)}
    assert stored == {str(dataset.SOPInstanceUID): encode(dataset) for dataset in series}


def test_a_client_that_does_not_shake_hands_does_not_hold_up_others(tmp_path, certificates):
    tls = {"cert": certificates / "server.pem", "key": certificates / "server.key"}
    receiver = InProcess(tmp_path, tls=tls)
    silent = socket.create_connection(receiver.address)
    assert store_by_tls(receiver.address, certificates, with_certificate=False) == Status.SUCCESS
    silent.close()
    receiver.stop(0.5)
