"""Docker Engine: asked whether it runs, and started where this machine lets us (Debian, root)."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from docker import DockerClient
from docker.errors import DockerException
from requests.exceptions import RequestException
from testcontainers.core.docker_client import get_docker_host

from infra import warden
from infra.prerequisites import MissingPrerequisite
from infra.processes import StackError, tail, wait_for
from infra.warden import Identity

START_LIMIT_SECONDS: Final = 60.0
STOP_LIMIT_SECONDS: Final = 60.0
INSTALL_LIMIT_SECONDS: Final = 600.0
ASK_LIMIT_SECONDS: Final = 60  # of one request; a registry behind it may be slow

PACKAGES: Final = ("docker.io", "debootstrap")


def connect() -> DockerClient:
    """Return a client, of the engine that testcontainers finds: DOCKER_HOST, its properties, the CLI's context."""
    host = get_docker_host()
    environment = {**os.environ, "DOCKER_HOST": host} if host else None
    return DockerClient.from_env(timeout=ASK_LIMIT_SECONDS, environment=environment)


def absent() -> str | None:
    """Return why no Docker Engine answers, None when one does."""
    try:
        with closing(connect()) as client:
            client.ping()
    except (DockerException, RequestException) as error:
        return f"no Docker Engine answers ({type(error).__name__})"
    return None


def ensure(directory: Path) -> float | None:
    """Start Docker Engine unless one answers, installing Debian's first; return the seconds that took.

    What was started is remembered in `directory`, for `stop`. Raises MissingPrerequisite where it is not ours to start.
    """
    complaint = absent()
    if complaint is None:
        return None
    began = time.monotonic()
    if get_docker_host() is not None or os.geteuid() != 0:
        raise MissingPrerequisite(f"{complaint}: start Docker Engine, or set DOCKER_HOST to one that runs.")
    install()
    _start(directory)
    return time.monotonic() - began


def install() -> None:
    """Install Debian's Docker Engine and debootstrap where they are missing."""
    if shutil.which("dockerd") and shutil.which("debootstrap"):
        return
    apt = shutil.which("apt-get")
    if apt is None:
        raise MissingPrerequisite("dockerd is missing: install Docker Engine (`apt-get install docker.io` on Debian).")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ([apt, "-q", "update"], [apt, "-q", "install", "-y", "--no-install-recommends", *PACKAGES]):
        run(command, INSTALL_LIMIT_SECONDS, environment=environment)


def is_ours(directory: Path) -> bool:
    """Tell whether the Docker Engine that `ensure` started runs."""
    identity = _started(directory)
    return identity is not None and warden.is_alive(identity)


def stop(directory: Path) -> None:
    """Stop the Docker Engine that `ensure` started, and nobody else's."""
    identity = _started(directory)
    if identity is not None:
        warden.stop([(identity, signal.SIGTERM)], STOP_LIMIT_SECONDS)
        _record(directory).unlink()


def run(command: list[str], limit_seconds: float, *, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed; StackError with the end of that when it fails."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"`{' '.join(command[:3])} ...` did not end within {limit_seconds:.0f} s") from error
    if done.returncode != 0:
        said = done.stdout[-2000:]
        raise StackError(f"`{' '.join(command[:3])} ...` ended with status {done.returncode}:\n{said}")
    return done.stdout


def _start(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "dockerd.log"
    with log.open("ab") as sink:
        # A session of its own: it outlives us, until `stop`. Its storage is the usual one, so that images are kept.
        process = subprocess.Popen(
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    identity = warden.identify(process.pid)
    if identity is not None:  # it may have ended already: `answers` says so, and there is nothing to stop
        _record(directory).write_text(json.dumps(identity), encoding="utf-8")

    def answers() -> bool:
        if process.poll() is not None:
            raise StackError(f"dockerd ended with status {process.returncode}; the end of {log}:\n{tail(log)}")
        return absent() is None

    try:
        wait_for(answers, f"dockerd does not answer (its log is {log})", START_LIMIT_SECONDS)
    except StackError:
        stop(directory)
        raise


def _started(directory: Path) -> Identity | None:
    record = _record(directory)
    return Identity(*json.loads(record.read_text(encoding="utf-8"))) if record.exists() else None


def _record(directory: Path) -> Path:
    return directory / "dockerd.json"
