"""What must die, and the guard that makes it safe. The public names."""

from invalidator.async_nodes import connect_async
from invalidator.async_reader import AsyncCachedView, AsyncCacheReader
from invalidator.async_region import AsyncRegion
from invalidator.codecs import Codec
from invalidator.herd import Limits
from invalidator.layout import Layout
from invalidator.near import Near
from invalidator.nodes import Connection, connect
from invalidator.reader import CachedView, CacheReader
from invalidator.reading import Overloaded, Unproven
from invalidator.redis_url import Topology
from invalidator.region import Region
from invalidator.sessions import SourceFault
from invalidator.tokens import Session, Token
from invalidator.typed_views import OnDoubt
from invalidator.views import View, Views, load_views

__all__ = [
    "AsyncCacheReader",
    "AsyncCachedView",
    "AsyncRegion",
    "CacheReader",
    "CachedView",
    "Codec",
    "Connection",
    "Layout",
    "Limits",
    "Near",
    "OnDoubt",
    "Overloaded",
    "Region",
    "Session",
    "SourceFault",
    "Token",
    "Topology",
    "Unproven",
    "View",
    "Views",
    "connect",
    "connect_async",
    "load_views",
]
