"""The containers' warden: a small program that removes a run's containers when the process that started them is gone.

Like infra/warden.py it holds the read end of a pipe whose only lasting writer is that process. (testcontainers' own
reaper, Ryuk, does the same from a container that is given the engine's socket; it would be one image more to have.)
A container is recognised by its owner's label, which it has from its creation on. Run by its path; needs only docker.
"""

import os
import signal
import sys
import time

from docker import DockerClient
from docker.errors import APIError

LABEL = "staleproof.owner"
DONE = b"done\n"
"""What an owner says that has removed its containers itself."""

SETTLE_SECONDS = 2.0
"""How long nothing may be found before it is believed: a dying owner's last request may still be under way."""

LIMIT_SECONDS = 12.0
"""Less than an owner that lives waits for its warden."""
POLL_SECONDS = 0.2


def remove(client: DockerClient, owner: str) -> int:
    """Kill and remove every container of this owner, volumes included; return how many were found."""
    found = client.containers.list(all=True, filters={"label": f"{LABEL}={owner}"}, ignore_removed=True)
    for container in found:
        try:
            container.remove(force=True, v=True)
        except APIError as error:
            if error.status_code not in (404, 409):  # gone, or being removed by somebody else
                raise
    return len(found)


def main(owner: str, host: str) -> int:
    """Wait for the end of standard input; unless the owner said that it is done, remove what it left.

    `host` is the owner's DOCKER_HOST, empty for the usual one.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the pipe ends a warden
    if sys.stdin.buffer.read() == DONE:
        return 0
    client = DockerClient.from_env(environment={**os.environ, "DOCKER_HOST": host} if host else None)
    deadline = time.monotonic() + LIMIT_SECONDS
    settled = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < settled:
        if time.monotonic() > deadline:
            sys.stderr.write(f"containers of {owner} are left after {LIMIT_SECONDS:.0f} s\n")
            return 1
        if remove(client, owner):
            settled = time.monotonic() + SETTLE_SECONDS
        time.sleep(POLL_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
