"""Building images from Debian packages, for machines that reach no registry, and the project's own image.

Package mirrors are the ones that this machine's apt uses; they are asked for, never written down here.
"""

import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from docker import DockerClient

from infra import prerequisites
from infra.images import engine
from infra.images.engine import run
from infra.images.roles import PYTHON, RECIPES, Role, base_tag, debian_suite, is_offered, is_present, local_tag
from infra.prerequisites import MissingPrerequisite
from infra.processes import StackError

BUILD_LIMIT_SECONDS: Final = 1200.0
CHECKOUT: Final = RECIPES.parents[1]
PROJECT_TAG: Final = "staleproof"
PROJECT_PARTS: Final = ("cdc", "invalidator", "consumers", "infra")
PROJECT_FILES: Final = ("pyproject.toml", "requirements.lock", "README.md", "LICENSE")

Say = Callable[[str], None]


def role_image(client: DockerClient, role: Role, *, kafka_libs: Path, say: Say) -> str:
    """Return our own image for a role, built unless it is there."""
    suite = _suite(role)
    tag = local_tag(role, suite)
    if is_present(client, tag):
        return tag
    base = _base_image(client, suite, say)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="staleproof-image-") as place:
        context = Path(place)
        for name in role.files:
            shutil.copy(RECIPES / name, context)
        if role.name == "kafka":
            shutil.copytree(prerequisites.find_kafka(kafka_libs, prerequisites.find_java()), context / "libs")
        _docker_build(tag, context / f"{role.name}.Dockerfile", context, {"BASE": base}, network="host")
    say(f"built {tag} in {time.monotonic() - began:.0f} s")
    return tag


def project_image(client: DockerClient, *, kafka_libs: Path, say: Say) -> str:
    """Build the project's own image: on python:*-slim where that is offered, else on Debian's Python."""
    if not (CHECKOUT / "requirements.lock").exists():
        raise StackError("the project's image is built from a checkout: this is an installed package")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="staleproof-image-") as place:
        context = Path(place)
        for part in PROJECT_PARTS:
            shutil.copytree(CHECKOUT / part, context / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in PROJECT_FILES:
            shutil.copy(CHECKOUT / file, context)
        arguments: dict[str, str] = {}
        if not (is_present(client, PYTHON.official) or is_offered(client, PYTHON.official)):
            base = role_image(client, PYTHON, kafka_libs=kafka_libs, say=say)
            _download_wheels(context, _python_version(client, base))
            arguments = {"BASE": base}
        recipe = RECIPES / "Dockerfile"
        _docker_build(PROJECT_TAG, recipe, context, arguments, network="none" if arguments else "default")
    say(f"built {PROJECT_TAG} in {time.monotonic() - began:.0f} s")
    return PROJECT_TAG


def _suite(role: Role) -> str:
    suite = debian_suite()
    if suite is None:
        raise MissingPrerequisite(
            f"an image for {role.name} is built from Debian packages, and this is no Debian:"
            f" let Docker Engine reach a registry that has {role.official}, or name an image in {role.variable}."
        )
    return suite


def _base_image(client: DockerClient, suite: str, say: Say) -> str:
    tag = base_tag(suite)
    if is_present(client, tag):
        return tag
    began = time.monotonic()
    engine.install()
    sources = apt_sources()
    mirror = next((line.split()[1] for line in sources if line.split()[2] == suite), None)
    if mirror is None:
        raise StackError(f"apt has no source of Debian {suite}: run `apt-get update`, or name images by variables")
    with tempfile.TemporaryDirectory(prefix="staleproof-base-") as place:
        root = Path(place) / "root"
        run(["debootstrap", "--variant=minbase", suite, str(root), mirror], BUILD_LIMIT_SECONDS)
        shutil.rmtree(root / "var/cache/apt/archives")
        (root / "etc/apt/sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
        archive = Path(place) / "base.tar"
        run(["tar", "-C", str(root), "--one-file-system", "-cf", str(archive), "."], BUILD_LIMIT_SECONDS)
        run(["docker", "import", str(archive), tag], BUILD_LIMIT_SECONDS)
    say(f"built {tag} in {time.monotonic() - began:.0f} s")
    return tag


def apt_sources() -> list[str]:
    """Return this machine's sources of Debian packages, security updates included, as lines of a sources.list."""
    form = "$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    told = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], BUILD_LIMIT_SECONDS)
    return sorted({line.removeprefix("Debian ") for line in told.splitlines() if line.startswith("Debian ")})


def _docker_build(tag: str, recipe: Path, context: Path, arguments: Mapping[str, str], *, network: str) -> None:
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    command = [
        "docker",
        "build",
        "--force-rm",
        "--network",
        network,
        "--tag",
        tag,
        "--file",
        str(recipe),
        *given,
        str(context),
    ]
    run(command, BUILD_LIMIT_SECONDS)


def _python_version(client: DockerClient, image: str) -> str:
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    answer: bytes = client.containers.run(image, ["python3", "-c", program], remove=True, network_mode="none")
    return answer.decode().strip()


def _download_wheels(context: Path, python_version: str) -> None:
    """Fetch what the image installs here, where pip knows its index; the Dockerfile checks the hashes."""
    lock = (context / "requirements.lock").read_text(encoding="utf-8")
    pins = context / "pins.txt"
    pins.write_text("\n".join(re.findall(r"^[^ #\n]+==[^ \n]+", lock, re.MULTILINE)) + "\n", encoding="utf-8")
    # pip reads markers for the Python that it runs in, whatever --python-version says: take what has one in any case.
    marked = re.findall(r"^([^ #\n]+==[^ \n]+) ; python", lock, re.MULTILINE)
    project = tomllib.loads((context / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
    where = ["--python-version", python_version, "--dest", str(context / "wheels"), "-c", str(pins)]
    run([*pip, *where, "setuptools", *marked, *project["dependencies"]], BUILD_LIMIT_SECONDS)
