"""The state file of a long command: what was asked, and how far it came. A killed command goes on from it.

In flow the plan (what the command line asks for) and the progress, both plain JSON values; the file is replaced as a
whole, so that whoever is killed while writing leaves the one before. What is inside is not secret: no row's value is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from cdc.errors import ConfigError

VERSION = 1


class _State(msgspec.Struct, frozen=True, kw_only=True):
    v: int
    plan: dict[str, Any]
    progress: dict[str, Any]


class Resume:
    """The state of one command in the file `path`. `plan` has to be equal for a command to go on from it."""

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self._plan = _as_read(plan)

    def load(self) -> dict[str, Any] | None:
        """The progress of an earlier run of the same plan; None where there was none.

        Raises ConfigError for the file of another plan, or one that cannot be read.
        """
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=_State)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"the state file {self.path} cannot be read: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the state file {self.path} is none of ours: remove it or name another: {error}"
            ) from None
        if state.v != VERSION:
            message = f"the state file {self.path} is of version {state.v}, this release reads {VERSION}"
            raise ConfigError(f"{message}: finish with the release that began, or remove the file to start anew")
        differences = _differences(state.plan, self._plan)
        if differences:
            raise ConfigError(
                f"the state file {self.path} is of another command ({differences}): repeat that one to go on, remove"
                " the file to give it up, or name another with --state"
            )
        return state.progress

    def save(self, progress: dict[str, Any]) -> None:
        """Replace what the file says. Raises ConfigError where it cannot be written."""
        state = _State(v=VERSION, plan=self._plan, progress=progress)
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
                file.flush()
                os.fsync(file.fileno())  # else a machine that stops may keep the new name and nothing under it
            draft.replace(self.path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            where = f"the state file {self.path} cannot be written"
            raise ConfigError(f"{where}: {error.strerror}: name another place with --state") from None

    def done(self) -> None:
        """The command is complete: nothing is to be gone on with."""
        self.path.unlink(missing_ok=True)


def _as_read(plan: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from the file: tuples are lists there."""
    read: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(plan))
    return read


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The names of what differs, and the values where they are short."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} was {_short(theirs.get(name))}, is {_short(ours.get(name))}" for name in names)


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
