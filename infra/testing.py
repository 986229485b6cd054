"""A pytest plugin: test your own views on real PostgreSQL, Kafka and Redis, with the processes that production runs.

    def test_a_new_price_reaches_every_basket(staleproof):
        site = staleproof(schema=Path("schema.sql"), views=Path("views.yaml"), loaders={"basket": load_basket})
        site.assert_fresh("basket", 7)
        site.change_and_wait("UPDATE products SET price = 5 WHERE id = 1")
        site.assert_fresh("basket", 7)

Servers are started once per session, and only for a test that asks for them; what a project that never does pays is
this file. Guide: docs/testing.md.
"""

from __future__ import annotations

import importlib
import os
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

if TYPE_CHECKING:
    from infra.backends import Choice
    from infra.servers import Servers
    from infra.site import Site
    from infra.site_maker import SiteMaker
    from infra.standby import Standby

# Everything else of ours is imported where a fixture needs it: most runs of most projects never get there.
# ruff: noqa: PLC0415

BACKENDS: Final = ("auto", "containers", "processes")
DEFAULT_REGIONS: Final = "eu us"

_OPTIONS: Final = {
    "backend": f"who runs the servers: {', '.join(BACKENDS)} (containers where Docker answers, else processes)",
    "servers": "directory of a stack that runs already (`python -m infra.stack up`); nothing is started then",
    "regions": f"names of the regions, each with a Redis of its own; default: {DEFAULT_REGIONS}",
    "redis-server": "a redis-server or valkey-server program for the backend processes",
}
_VARIABLES: Final = {
    "backend": "STALEPROOF_BACKEND",
    "servers": "STALEPROOF_SERVERS",
    "redis-server": "STALEPROOF_REDIS_SERVER",
    # Not the regions: STALEPROOF_REGIONS__… are settings.
}
_LINES: Final = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each as an option, in the environment (`_VARIABLES`) and in the ini file; the first that is there counts."""
    group = parser.getgroup("staleproof", "staleproof: caches under test on real servers")
    for name, text in _OPTIONS.items():
        group.addoption(f"--staleproof-{name}", metavar=name.upper(), help=text)
        parser.addini(_ini(name), help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an unknown backend before anything runs."""
    chosen = _setting(config, "backend")
    if chosen and chosen not in BACKENDS:
        raise pytest.UsageError(
            f"--staleproof-backend: there is no backend {chosen!r}; known are {', '.join(BACKENDS)}"
        )


@pytest.fixture(scope="session")
def staleproof_servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL, Kafka and a Redis per region: addresses, and `processes` by name to kill, pause and restart."""
    with warnings.catch_warnings():
        # kafka-python's own loading is deprecated: projects that make warnings errors shall not notice.
        warnings.simplefilter("ignore", DeprecationWarning)
        backends = importlib.import_module("infra.backends")
        importlib.import_module("infra.site_maker")
    config = request.config
    choice = _choice(config)
    with ExitStack() as last:
        began = time.monotonic()
        try:
            entered = backends.servers(choice, tmp_path_factory.mktemp("staleproof"))
            kind, servers = last.enter_context(entered)
        except backends.Unavailable as error:
            if backends.must_run(error.backend, os.environ):
                pytest.fail(f"{error} (CI is set: name it in ALLOW_SKIP to skip instead)", pytrace=False)
            pytest.skip(str(error))
        _tell(config, backends.summary(kind, servers, time.monotonic() - began))
        yield servers


@pytest.fixture(scope="session")
def staleproof_factory(
    request: pytest.FixtureRequest, staleproof_servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SiteMaker]:
    """Makes sites in any scope: `with staleproof_factory.make(...) as site: yield site`."""
    from infra.site_maker import SiteMaker

    redis_server = _choice(request.config).redis_server
    with SiteMaker.open(staleproof_servers, tmp_path_factory.mktemp("sites"), redis_server=redis_server) as maker:
        reporter = _Reporter(maker)
        request.config.pluginmanager.register(reporter)
        yield maker
        request.config.pluginmanager.unregister(reporter)


class MakeSite(Protocol):
    """What the fixture `staleproof` is: `SiteMaker.make` with its arguments."""

    def __call__(self, **arguments: Any) -> Site:
        """See `infra.site_maker.SiteMaker.make`."""


@pytest.fixture
def staleproof(staleproof_factory: SiteMaker) -> Iterator[MakeSite]:
    """Makes sites that end with the test."""
    with ExitStack() as last:

        def make(**arguments: Any) -> Site:
            site = staleproof_factory.make(**arguments)
            last.callback(site.end)
            return site

        yield make


@pytest.fixture(scope="module")
def staleproof_standby(staleproof_servers: Servers) -> Iterator[Standby]:
    """A streaming standby of the servers' PostgreSQL, for `site.reader(region, dsn=standby.dsn(site.name))`."""
    from infra.processes import StackError
    from infra.stack import Stack
    from infra.standby import Standby

    if not isinstance(staleproof_servers, Stack):
        raise StackError("a standby needs native processes of this session: use --staleproof-backend=processes")
    with Standby.start(staleproof_servers) as standby:
        yield standby


class _Reporter:
    """Registered with the first site: a test that fails shows what the processes of its sites logged last."""

    def __init__(self, maker: SiteMaker) -> None:
        self._maker = maker

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            for site in self._maker.living:
                report.sections += [(f"staleproof {name}", text) for name, text in site.log_tails().items() if text]
        return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Which servers were started, and how long that took."""
    for line in config.stash.get(_LINES, []):
        terminalreporter.write_line(f"staleproof: {line}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """With pytest-xdist: each worker has servers of its own, and only the controller has a terminal."""
    lines = getattr(node, "workeroutput", {}).get("staleproof", [])
    node.config.stash.setdefault(_LINES, []).extend(f"{line} (worker {node.gateway.id})" for line in lines)


def _tell(config: pytest.Config, line: str) -> None:
    config.stash.setdefault(_LINES, []).append(line)
    workeroutput = getattr(config, "workeroutput", None)
    if workeroutput is not None:
        workeroutput["staleproof"] = config.stash[_LINES]


def _choice(config: pytest.Config) -> Choice:
    from infra.backends import Choice

    running, redis_server = _setting(config, "servers"), _setting(config, "redis-server")
    regions = _setting(config, "regions") or ("" if running else DEFAULT_REGIONS)
    return Choice(
        backend=_setting(config, "backend") or "auto",
        regions=tuple(regions.replace(",", " ").split()),
        running=config.invocation_params.dir / running if running else None,
        kafka_libs=config.rootpath / ".staleproof" / "kafka" / "libs",
        redis_server=Path(redis_server) if redis_server else None,
    )


def _setting(config: pytest.Config, name: str) -> str:
    """The option, else the environment, else the ini file, else an empty text."""
    option = config.getoption(f"--staleproof-{name}")
    return str(option or os.environ.get(_VARIABLES.get(name, "")) or config.getini(_ini(name)))


def _ini(name: str) -> str:
    return f"staleproof_{name.replace('-', '_')}"
