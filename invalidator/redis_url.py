"""The address of a region's Redis: one URL, which may name several servers of one Cluster, or several Sentinels. Pure.

`redis://user:password@a:6379,b:6379/0` names a and b; everything else of the URL is said once and holds for both.
"""

from __future__ import annotations

from enum import StrEnum
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit


class Topology(StrEnum):
    """How a region's servers belong together."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


Address = tuple[str, int]
"""Host and port."""

DEFAULT_PORT = 6379
DEFAULT_USER = "default"
"""Who gives no login is this user."""


def single_urls(url: str) -> list[str]:
    """One URL per server that `url` names. Raises ValueError where it is none."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return [url]
    login, at, servers = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{login}{at}{server}")) for server in servers.split(",")]


def address(url: str) -> Address:
    """Where the one server of `url` listens. Raises ValueError."""
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or DEFAULT_PORT


def at(url: str, place: Address) -> str:
    """The same URL for a server elsewhere."""
    parts = urlsplit(url)
    login, at_sign, _ = parts.netloc.rpartition("@")
    host, port = place
    return urlunsplit(parts._replace(netloc=f"{login}{at_sign}{f'[{host}]' if ':' in host else host}:{port}"))


def user(url: str) -> str:
    """Who logs in, by the URL; empty where it says nothing. Raises ValueError."""
    return unquote(urlsplit(url).username or "")


def database(url: str) -> int:
    """The database's number, 0 where the URL names none. Raises ValueError."""
    parts = urlsplit(url)
    (named,) = parse_qs(parts.query).get("db", [""])[:1]
    if not named and parts.scheme != "unix":
        named = parts.path.strip("/")
    return int(named or 0)
