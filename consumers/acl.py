"""`staleproof acl`: prints users of Redis (`redis_users.py`) for one region, with hashes of passwords from files.

Only what a server loads goes to stdout: an ACL file knows no comments. What a person must know beside it are notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from cdc.errors import ConfigError
from consumers.redis_users import Form, Role, lines, plain_patterns
from consumers.regions import read_views
from consumers.settings import Settings


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `region` None: whichever, as long as they agree. `password_files`: ROLE=FILE."""

    region: str | None
    roles: tuple[Role, ...]
    password_files: tuple[str, ...] = ()
    form: Form = Form.FILE


def run(settings: Settings, request: Request) -> tuple[list[str], list[str]]:
    """The lines, and notes for a person. Raises ConfigError."""
    passwords = read_passwords(request.password_files)
    unused = passwords.keys() - {*request.roles}
    if unused:
        raise ConfigError(f"--password-file names {min(unused)}, which --role leaves out: drop one of them")
    names = [request.region] if request.region is not None else list(settings.regions)
    plain = plain_patterns(read_views(settings.views)) if Role.WORKER in request.roles else ()
    found = [
        list(lines(settings.regions[name], request.roles, passwords, plain=plain, form=request.form)) for name in names
    ]
    if any(users != found[0] for users in found):
        raise ConfigError(f"the regions' users differ: choose one with --region: {', '.join(names)}")
    return found[0], notes(request, passwords)


def notes(request: Request, passwords: dict[Role, str]) -> list[str]:
    """What to do with the lines."""
    missing = [str(role) for role in request.roles if role not in passwords]
    found = []
    if missing:
        found.append(
            f"no password for {', '.join(missing)}: every server refuses the placeholder; put the password's SHA-256"
            f" there, or name its file: --password-file {missing[0]}=FILE"
        )
    place = "append them to the aclfile of every server, replicas too, and run ACL LOAD"
    if request.form is Form.COMMAND:
        place = "run them on every server, replicas too, and then ACL SAVE or CONFIG REWRITE"
    return [
        *found,
        f"{place}. The user `default` stays as it is: with no password it may do everything (docs/security.md)",
    ]


def read_passwords(files: Sequence[str]) -> dict[Role, str]:
    """Role to password, stripped as other secret files are. Raises ConfigError, which quotes no content."""
    passwords: dict[Role, str] = {}
    known = {str(role): role for role in Role}
    for text in files:
        name, _, path = text.partition("=")
        if name not in known or not path:
            raise ConfigError(f"--password-file is ROLE=FILE, with a role of {', '.join(known)}")
        if known[name] in passwords:
            raise ConfigError(f"--password-file names {name} twice: keep one")
        try:
            password = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(
                f"the password file {path} cannot be read ({reason}): correct the path or its rights"
            ) from None
        if not password:
            raise ConfigError(f"the password file {path} is empty: write the password into it")
        passwords[known[name]] = password
    return passwords
