"""`python -m infra.images up|down|project`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from docker import DockerClient

from infra import containers
from infra.images import build, engine, roles
from infra.prerequisites import MissingPrerequisite
from infra.processes import StackError
from infra.stack import DEFAULT_DIRECTORY, EXIT_DOWN, EXIT_MISSING


def up(directory: Path) -> None:
    """Have a Docker Engine that runs, and an image for every server; a second call finds everything there."""
    seconds = engine.ensure(directory / "images")
    if seconds is not None:
        print(f"started Docker Engine in {seconds:.1f} s; `python -m infra.images down` stops it")
    with closing(engine.connect()) as client:
        for role in roles.ROLES.values():
            print(f"{role.name:<10} {_image(client, role, directory)}")


def _image(client: DockerClient, role: roles.Role, directory: Path) -> str:
    try:
        image = roles.choose(client, role, {})
    except MissingPrerequisite:
        return build.role_image(client, role, kafka_libs=directory / "kafka" / "libs", say=print)
    if not roles.is_present(client, image):
        client.images.pull(image)
    return image


def down(directory: Path) -> None:
    """Stop the Docker Engine that `up` started, unless containers that somebody needs still run on it."""
    if not engine.is_ours(directory / "images"):
        print("no Docker Engine of ours runs")
        return
    with closing(engine.connect()) as client:
        containers.remove_orphans(client)
        running = [container.name for container in client.containers.list(ignore_removed=True)]
    if running:
        raise StackError(f"Docker Engine still runs {', '.join(running)}: stop them, then try again")
    engine.stop(directory / "images")
    print("stopped Docker Engine")


def project(directory: Path) -> None:
    """Build the project's own image."""
    engine.ensure(directory / "images")
    with closing(engine.connect()) as client:
        build.project_image(client, kafka_libs=directory / "kafka" / "libs", say=print)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code: 2 for a missing prerequisite, 1 for any other failure."""
    parser = argparse.ArgumentParser(prog="python -m infra.images", description="Images of the containers backend.")
    commands = {"up": up, "down": down, "project": project}
    parser.add_argument("command", choices=list(commands))
    options = parser.parse_args(arguments)
    try:
        commands[options.command](DEFAULT_DIRECTORY)
    except MissingPrerequisite as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISSING
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DOWN
    return 0


if __name__ == "__main__":
    sys.exit(main())
