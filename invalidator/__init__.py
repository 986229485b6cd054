"""What must die, and the guard that makes it safe. The public names."""

from invalidator.layout import Layout
from invalidator.nodes import Connection, connect
from invalidator.reader import CacheReader
from invalidator.redis_url import Topology
from invalidator.region import Region
from invalidator.views import View, Views, load_views

__all__ = ["CacheReader", "Connection", "Layout", "Region", "Topology", "View", "Views", "connect", "load_views"]
