"""Each fault of the proxy, seen from both ends of a plain socket."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from infra.proxy import FaultProxy, Then, Way
from infra.proxy_link import BUFFER_BYTES_MAX
from tests.waiting import wait_until

LIMIT_SECONDS = 5.0
SILENCE_SECONDS = 0.15  # how long nothing must come; a fault that lets bytes pass does so within a millisecond


class Server:
    """Remembers what each connection sent, and answers each line with its mark and the line, while it is answering."""

    def __init__(self, mark: bytes = b"<") -> None:
        self.mark = mark
        self.heard: list[bytearray] = []
        self.ended: list[str] = []
        self.answering = threading.Event()
        self.answering.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.heard.append(bytearray())
            threading.Thread(target=self._serve, args=(connection, self.heard[-1]), daemon=True).start()

    def _serve(self, connection: socket.socket, heard: bytearray) -> None:
        line = b""
        with connection:
            try:
                while True:
                    data = connection.recv(65536)
                    if not data:
                        break
                    heard += data
                    line += data
                    if line.endswith(b"\n"):
                        self.answering.wait()
                        connection.sendall(self.mark + line)
                        line = b""
            except OSError as error:
                self.ended.append(type(error).__name__)
                return
        self.ended.append("end")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def serving(mark: bytes = b"<") -> Iterator[Server]:
    server = Server(mark)
    yield server
    server.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        assert ask(client) == b"<hi\n"
        yield client


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT_SECONDS)


def ask(client: socket.socket, line: bytes = b"hi\n") -> bytes:
    client.sendall(line)
    return hear(client, len(line) + 1)


def hear(client: socket.socket, size: int) -> bytes:
    """That many bytes, or fewer where the connection ends."""
    data = b""
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return data


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SILENCE_SECONDS)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(LIMIT_SECONDS)
    return False


def test_without_a_fault_bytes_pass_and_the_end_passes_too(proxy: FaultProxy, server: Server) -> None:
    with connect(proxy) as client:
        assert ask(client, b"x" * 300_000 + b"\n")[:1] == b"<"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert len(server.heard[0]) == 300_001
    wait_until(lambda: proxy.counts().open_connections == 0, "the connection is over")
    wait_until(lambda: server.ended == ["end"], "the server has seen the end")


def test_counts_say_how_many_round_trips_were_made(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        for _ in range(3):
            ask(client)
        counts = proxy.counts()
        assert (counts.connections, counts.open_connections) == (1, 1)
        assert (counts.requests, counts.replies) == (3, 3)
        assert (counts.request_bytes, counts.reply_bytes, counts.swallowed) == (9, 12, 0)


@pytest.mark.parametrize("way", list(Way))
def test_a_delay_of_one_direction_makes_a_round_trip_that_much_longer(
    proxy: FaultProxy, client: socket.socket, way: Way
) -> None:
    proxy.delay(way, 120)
    began = time.monotonic()
    assert ask(client) == b"<hi\n"
    assert time.monotonic() - began >= 0.12
    proxy.delay(way, 60_000)
    client.sendall(b"late\n")
    assert is_silent(client)
    proxy.delay(way, 0)
    assert hear(client, 6) == b"<late\n"


def test_a_delay_does_not_add_up_over_bytes_that_are_under_way_together(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    proxy.delay(Way.REQUESTS, 300)
    began = time.monotonic()
    for number in range(6):
        client.sendall(b"piece")
        wait_until(lambda n=number: proxy.counts().request_bytes == 3 + 5 * (n + 1), "the proxy has read it")
    client.sendall(b"\n")
    assert hear(client, 1) == b"<"
    assert time.monotonic() - began < 1.5  # six delays would be 1.8 s


def test_a_rate_is_kept(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.limit_rate(Way.REPLIES, 50_000)
    began = time.monotonic()
    ask(client, b"x" * 15_000 + b"\n")
    took = time.monotonic() - began
    assert took >= 0.28  # 15,002 bytes; the last piece does not wait
    proxy.limit_rate(Way.REPLIES, None)
    began = time.monotonic()
    ask(client, b"x" * 15_000 + b"\n")
    assert time.monotonic() - began < took


def test_a_blackhole_of_replies_lets_the_request_through(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    proxy.blackhole(Way.REPLIES)
    client.sendall(b"done\n")
    wait_until(lambda: bytes(server.heard[0]) == b"hi\ndone\n", "the server hears the request")
    assert is_silent(client)


def test_a_blackhole_of_requests_hides_even_the_end_of_the_client(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    proxy.blackhole(Way.REQUESTS)
    client.sendall(b"lost\n")
    assert is_silent(client)
    client.close()
    time.sleep(SILENCE_SECONDS)  # nothing must come of it
    assert bytes(server.heard[0]) == b"hi\n"
    assert server.ended == []


@pytest.mark.parametrize("hide", [lambda proxy: proxy.blackhole(Way.REQUESTS), FaultProxy.half_open])
def test_a_client_that_resets_is_not_heard_of_while_its_requests_are_lost(
    proxy: FaultProxy, client: socket.socket, server: Server, hide: Callable[[FaultProxy], None]
) -> None:
    hide(proxy)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    time.sleep(SILENCE_SECONDS)  # nothing must come of it
    assert server.ended == []
    proxy.heal()
    wait_until(lambda: server.ended == ["ConnectionResetError"], "the server learns it then")


def test_a_stream_that_lost_bytes_is_reset_when_the_network_heals(proxy: FaultProxy, client: socket.socket) -> None:
    with connect(proxy) as idle:
        ask(idle)
        proxy.blackhole(Way.REPLIES)
        client.sendall(b"lost\n")
        assert is_silent(client)
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert ask(idle) == b"<hi\n"


def test_a_half_open_connection_moves_nothing_and_goes_on_where_it_was(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    proxy.half_open()
    client.sendall(b"held\n")
    assert is_silent(client)
    assert bytes(server.heard[0]) == b"hi\n"
    proxy.heal()
    assert hear(client, 6) == b"<held\n"


def test_a_half_open_connection_does_not_pass_on_that_the_client_is_gone(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    proxy.half_open()
    client.close()
    time.sleep(SILENCE_SECONDS)  # nothing must come of it
    assert server.ended == []
    proxy.heal()
    wait_until(lambda: server.ended, "the server learns it then")


def test_a_reset_reaches_both_ends_and_new_connections_work(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: server.ended == ["ConnectionResetError"], "the server is reset too")
    with connect(proxy) as again:
        assert ask(again) == b"<hi\n"


def test_refused_connections_are_refused_while_open_ones_go_on(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert ask(client) == b"<hi\n"
    proxy.heal()
    with connect(proxy) as again:
        assert ask(again) == b"<hi\n"


def test_a_reply_is_cut_after_exactly_so_many_bytes(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.cut_after(Way.REPLIES, 3)
    client.sendall(b"abcdef\n")
    assert hear(client, 100) == b"<ab"
    proxy.heal()
    with connect(proxy) as again:
        assert ask(again) == b"<hi\n"


def test_a_request_is_cut_after_exactly_so_many_bytes(proxy: FaultProxy, client: socket.socket, server: Server) -> None:
    proxy.cut_after(Way.REQUESTS, 2)
    client.sendall(b"abcdef\n")
    assert client.recv(1) == b""
    wait_until(lambda: server.ended, "the server sees the end")
    assert bytes(server.heard[0]) == b"hi\nab"


def test_exactly_the_next_reply_vanishes_though_the_server_heard_the_request(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    with connect(proxy) as other:
        ask(other)
        proxy.swallow_replies(1)
        client.sendall(b"set\n")
        wait_until(lambda: proxy.counts().swallowed == 1, "the server has answered")
        assert bytes(server.heard[0]) == b"hi\nset\n"
        assert is_silent(client)
        client.sendall(b"again\n")  # the stream has a hole: it stays mute
        assert is_silent(client)
        assert ask(other) == b"<hi\n"
    assert proxy.counts().swallowed == 1


def test_a_swallowed_reply_may_end_in_a_reset(proxy: FaultProxy, client: socket.socket, server: Server) -> None:
    proxy.swallow_replies(1, then=Then.RESET)
    client.sendall(b"set\n")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert bytes(server.heard[0]) == b"hi\nset\n"
    assert proxy.counts().swallowed == 1
    with connect(proxy) as again:
        assert ask(again) == b"<hi\n"


def test_only_replies_to_requests_with_a_certain_text_vanish_wherever_the_text_is_torn(
    proxy: FaultProxy, client: socket.socket
) -> None:
    proxy.swallow_replies(1, containing=b"APPLY")
    assert ask(client, b"hello\n") == b"<hello\n"
    for piece in (b"xAP", b"PL"):
        before = proxy.counts().request_bytes
        client.sendall(piece)
        wait_until(lambda before=before: proxy.counts().request_bytes > before, "the proxy has read it")
    client.sendall(b"Y\n")
    wait_until(lambda: proxy.counts().swallowed == 1, "the reply is swallowed")
    assert is_silent(client)
    with connect(proxy) as again:
        assert ask(again, b"APPLY\n") == b"<APPLY\n"


def test_replies_vanish_until_healed(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.swallow_replies(None)
    for _ in range(2):
        with connect(proxy) as other:
            other.sendall(b"set\n")
            assert is_silent(other)
    proxy.heal()
    assert ask(client) == b"<hi\n"


def test_a_reply_that_has_not_come_yet_is_spared_by_healing(
    proxy: FaultProxy, client: socket.socket, server: Server
) -> None:
    server.answering.clear()
    proxy.swallow_replies(1)
    client.sendall(b"held\n")
    wait_until(lambda: server.heard[0].endswith(b"held\n"), "the server has the request")
    proxy.heal()
    server.answering.set()
    assert hear(client, 6) == b"<held\n"


def test_new_connections_go_to_the_new_target_and_open_ones_stay(proxy: FaultProxy, client: socket.socket) -> None:
    with serving(b">") as successor:
        proxy.retarget(successor.port)
        assert ask(client) == b"<hi\n"
        with connect(proxy) as again:
            assert ask(again) == b">hi\n"


def test_a_target_that_is_away_ends_the_connection_and_not_the_proxy(proxy: FaultProxy, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()[1]
    proxy.retarget(nobody)
    with connect(proxy) as client:
        assert client.recv(1) == b""
    proxy.retarget(server.port)
    with connect(proxy) as client:
        assert ask(client) == b"<hi\n"


def test_a_sender_is_not_read_further_than_the_buffer(proxy: FaultProxy, client: socket.socket, server: Server) -> None:
    proxy.delay(Way.REQUESTS, 60_000)
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.sendall(b"x" * 100 * BUFFER_BYTES_MAX)
    assert BUFFER_BYTES_MAX <= proxy.counts().request_bytes < 2 * BUFFER_BYTES_MAX
    assert bytes(server.heard[0]) == b"hi\n"


def test_a_closed_proxy_leaves_no_thread_and_no_listener(server: Server) -> None:
    proxy = FaultProxy(server.port)
    with connect(proxy) as client:
        ask(client)
        proxy.half_open()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert "fault-proxy" not in {thread.name for thread in threading.enumerate()}
    proxy.close()
