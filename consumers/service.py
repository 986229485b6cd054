"""What every long-running process needs: logs, a stop on signals, and /metrics, /live, /ready over HTTP.

Liveness is judged by a callback that knows of progress, never by the fact that HTTP answers.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cdc.errors import ConfigError

MAX_HTTP_CONNECTIONS = 64
HTTP_STOP_SECONDS = 2

_log = structlog.get_logger("service")


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """Whether the process makes progress (live) and can be relied on (ready); `reason` when it is not."""

    live: bool
    ready: bool
    reason: str = ""


class Pulse:
    """Judges a loop by its progress: the loop reports, the HTTP thread asks.

    Live while reports come; ready while heartbeats also pass and nothing is in doubt. The limit of both is
    `stalled_after_seconds`.
    """

    def __init__(self, *, stalled_after_seconds: float) -> None:
        self._limit_seconds = stalled_after_seconds
        self._passed_at: float | None = None
        self._doubt = ""
        self.wait("starting")

    def beat(self, passed_at: float | None, doubt: str = "") -> None:
        """The loop turned. `passed_at`: when a heartbeat last passed (monotonic); `doubt`: why not to rely on it."""
        self._passed_at, self._doubt, self._waiting_for = passed_at, doubt, ""
        self._due_at = time.monotonic() + self._limit_seconds

    def wait(self, reason: str, *, limit_seconds: float = 0.0) -> None:
        """The loop waits for something outside; it reports again within that time, or within the usual limit."""
        self._waiting_for = reason
        self._due_at = time.monotonic() + max(limit_seconds, self._limit_seconds)

    def health(self) -> Health:
        """What the loop's reports say now."""
        now = time.monotonic()
        if now > self._due_at:
            late = now - self._due_at + self._limit_seconds
            return Health(live=False, ready=False, reason=self._waiting_for or f"no turn for {late:.0f} s")
        if self._waiting_for:
            return Health(live=True, ready=False, reason=self._waiting_for)
        if self._passed_at is None or now - self._passed_at > self._limit_seconds:
            return Health(live=True, ready=False, reason="no heartbeat has passed for long, or ever")
        return Health(live=True, ready=not self._doubt, reason=self._doubt)


def configure_logging(*, as_json: bool | None = None, debug: bool = False) -> None:
    """Logs on stderr: JSON lines, or coloured text where a person looks at a terminal."""
    as_json = not sys.stderr.isatty() if as_json is None else as_json
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # today's stderr, also where a test replaced it
        cache_logger_on_first_use=False,
    )
    # Libraries log what they also raise, sometimes with addresses and values: what is raised is reported by us.
    for name in ("kafka", "psycopg", "psycopg.pool", "uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`; a second one ends the process at once, with 128 + its number."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def serve_http(
    *, host: str, port: int, health: Callable[[], Health], registry: CollectorRegistry = REGISTRY
) -> Iterator[int]:
    """Serve /metrics, /live and /ready from a thread; gives the port, a free one for 0.

    Raises ConfigError when the address cannot be used. `health` is called from that thread.
    """
    listener = _listen(host, port)
    bound = int(listener.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(
            http_app(host=host, health=health, registry=registry),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=MAX_HTTP_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=HTTP_STOP_SECONDS,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    try:
        _log.info("http_listening", host=host, port=bound)
        yield bound
    finally:
        server.should_exit = True
        thread.join(HTTP_STOP_SECONDS + 1)
        listener.close()


def http_app(*, host: str, health: Callable[[], Health], registry: CollectorRegistry) -> Starlette:
    """The three pages; each refuses a Host that is a foreign name, so that no web site can read them by DNS."""

    def guarded(answer: Callable[[], Response]) -> Callable[[Request], Response]:
        def page(request: Request) -> Response:
            if not host_is_ours(request.headers.get("host", ""), host):
                return PlainTextResponse("this Host is not served\n", 421)
            return answer()

        return page

    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def live() -> Response:
        now = _judged(health)
        return JSONResponse({"live": now.live, "reason": now.reason}, 200 if now.live else 503)

    def ready() -> Response:
        now = _judged(health)
        good = now.live and now.ready
        return JSONResponse({"ready": good, "reason": now.reason}, 200 if good else 503)

    pages = (("/metrics", metrics), ("/live", live), ("/ready", ready))
    return Starlette(routes=[Route(path, guarded(answer), methods=["GET"]) for path, answer in pages])


def host_is_ours(header: str, configured: str) -> bool:
    """Whether a Host header names us: an IP address, localhost or the configured host, with any port.

    A foreign web site can make its own name resolve to us, but cannot make a browser send an address as Host.
    """
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in ("localhost", configured.lower()):
        return bool(name)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _judged(health: Callable[[], Health]) -> Health:
    try:
        return health()
    except Exception as error:  # noqa: BLE001 - a judge that fails must not look healthy
        return Health(live=False, ready=False, reason=f"the health check failed: {type(error).__name__}")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason.lower()}: "
            "set http_port to a free port or 0, and http_host to an address of this machine"
        ) from None
