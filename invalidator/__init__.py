"""What must die, and the guard that makes it safe. The public names."""

from invalidator.layout import Layout
from invalidator.reader import CacheReader
from invalidator.region import Connection, Region, connect
from invalidator.views import View, Views, load_views

__all__ = ["CacheReader", "Connection", "Layout", "Region", "View", "Views", "connect", "load_views"]
