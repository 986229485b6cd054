"""Which image plays each server: one that was asked for, else the official one, else one built here.

Pure but for two questions, asked of Docker Engine through its client.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from docker import DockerClient
from docker.errors import APIError, ImageNotFound
from requests.exceptions import RequestException

from infra import broker, cache, prerequisites
from infra.prerequisites import MissingPrerequisite

RECIPES: Final = Path(__file__).parent
REPOSITORY: Final = "staleproof-test"
BASE: Final = "base"
ENVIRONMENT_PREFIX: Final = "STALEPROOF_IMAGE_"
DIGEST_LETTERS: Final = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One server: the official image, and the files here that an image of our own is made from."""

    name: str
    official: str
    files: Sequence[str]

    @property
    def variable(self) -> str:
        """The environment variable that asks for another image."""
        return f"{ENVIRONMENT_PREFIX}{self.name.upper()}"


ROLES: Final[Mapping[str, Role]] = {
    role.name: role
    for role in (
        Role(
            name="postgres",
            official=f"postgres:{prerequisites.POSTGRES_MAJOR}",
            files=("postgres.Dockerfile", "postgres-entry.sh"),
        ),
        Role(
            name="kafka",
            official=f"apache/kafka:{broker.VERSION}",
            files=("kafka.Dockerfile", "kafka-entry.sh", "../kafka/pom.xml"),
        ),
        Role(name="redis", official=cache.IMAGE, files=("redis.Dockerfile",)),
    )
}
PYTHON: Final = Role(name="python", official="python:3.13-slim", files=("python.Dockerfile",))


def base_tag(suite: str) -> str:
    """Return the name of the base image made from this Debian release."""
    return f"{REPOSITORY}/{BASE}:{_digest([suite.encode()])}"


def local_tag(role: Role, suite: str) -> str:
    """Return the name of our own image: its tag is a digest of its recipe, so that a changed recipe is built anew."""
    contents = [(RECIPES / name).read_bytes() for name in role.files]
    return f"{REPOSITORY}/{role.name}:{_digest([base_tag(suite).encode(), *contents])}"


def debian_suite(release_file: Path = Path("/etc/os-release")) -> str | None:
    """Return the codename of the Debian release that runs here, None on anything else."""
    try:
        lines = release_file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    values = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    return values.get("VERSION_CODENAME") if values.get("ID") == "debian" else None


def wanted(role: Role, asked: Mapping[str, str]) -> str | None:
    """Return the image that was asked for, by `asked` (by role) or by an environment variable."""
    return asked.get(role.name) or os.environ.get(role.variable) or None


def is_present(client: DockerClient, image: str) -> bool:
    """Tell whether Docker Engine has the image."""
    try:
        client.images.get(image)
    except ImageNotFound:
        return False
    return True


def is_offered(client: DockerClient, image: str) -> bool:
    """Tell whether a registry that Docker Engine can reach has the image."""
    try:
        client.images.get_registry_data(image)
    except (APIError, RequestException):  # no such image, no such host, no answer in time
        return False
    return True


def choose(client: DockerClient, role: Role, asked: Mapping[str, str]) -> str:
    """Return the image that plays the role; MissingPrerequisite when there is none."""
    image = wanted(role, asked)
    if image is not None:
        return image
    suite = debian_suite()
    own = None if suite is None else local_tag(role, suite)
    for candidate in (role.official, own):
        if candidate is not None and is_present(client, candidate):
            return candidate
    if is_offered(client, role.official):
        return role.official
    raise MissingPrerequisite(
        f"there is no image for {role.name}: no registry offers {role.official} here, and none was built;"
        f" run `python -m infra.images up`, or name one in {role.variable}."
    )


def _digest(parts: Sequence[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:DIGEST_LETTERS]
