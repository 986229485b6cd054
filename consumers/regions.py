"""What the settings name, opened: the views of the file, a region with its Redis."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from cdc.errors import ConfigError
from consumers.settings import RegionSettings, Settings
from invalidator.layout import Layout
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from invalidator.views import Views, load_views


def read_views(path: Path) -> Views:
    """The views of a file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = f"there is no views file {path}: run `staleproof init` to write one, or set `views` in the settings"
        raise ConfigError(message) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"the views file {path} cannot be read: {reason}") from None
    return load_views(text, place=str(path))


def redis_connection(region: RegionSettings) -> Connection:
    """How the region's Redis is reached."""

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    def shown(secret: SecretStr | None) -> str | None:
        return None if secret is None else secret.get_secret_value()

    return Connection(
        url=region.url.get_secret_value(),
        topology=region.topology,
        sentinel_master=region.sentinel_master or "",
        sentinel_username=region.sentinel_username,
        sentinel_password=shown(region.sentinel_password),
        username=region.username,
        password=shown(region.password),
        tls_ca=text(region.tls_ca_location),
        tls_certificate=text(region.tls_certificate_location),
        tls_key=text(region.tls_key_location),
        timeout_seconds=region.timeout_ms / 1000,
    )


def open_region(settings: Settings, name: str) -> Region:
    """The region `name`; nothing is sent yet. Raises ConfigError for an unknown name."""
    known = settings.regions.get(name)
    if known is None:
        raise ConfigError(
            f"there is no region {name!r} in the settings; known are {', '.join(sorted(settings.regions))}"
        )
    layout = Layout(prefix=known.prefix, shards=known.shards, stripes=known.stripes)
    return Region(name, connect(redis_connection(known)), layout)
