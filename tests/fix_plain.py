"""A world whose contacts lie in Redis under keys of the application's own."""

from __future__ import annotations

from typing import Any

from invalidator.region import Region
from invalidator.views import Views, load_views
from tests.fix_world import World


def views_of(region: Region) -> Views:
    """A plain view with keys of this test's own, beside a guarded one."""
    text = f"""
version: 1
views:
  contact: {{key: "{region.layout.prefix}:contact:{{id}}", layout: plain, tables: {{public.contacts: {{}}}}}}
  template: {{key: "template:{{id}}", mode: refresh, tables: {{public.templates: {{}}}}}}
"""
    return load_views(text, place="views.yaml")


class PlainWorld(World):
    """Contacts are plain."""

    def __init__(self, region: Region) -> None:
        super().__init__(region)
        self.views = views_of(region)
        self.worker = self.new_worker(views=self.views)

    def key(self, number: int | str = 1) -> str:
        return f"{self.region.layout.prefix}:contact:{number}"

    def ask(self, command: str, number: int, *rest: str) -> Any:
        """A request for one key, wherever it lies."""
        return self.region._nodes.call(self.key(number), command, self.key(number), *rest)

    def set(self, number: int = 1, value: str = "x") -> None:
        """As an application does that knows nothing of us."""
        self.ask("SET", number, value)

    def has(self, number: int = 1) -> bool:
        return bool(self.ask("EXISTS", number))

    def beat(self, snapshot: str | None = None) -> None:
        self.heartbeat(snapshot)
        self.drain()

    def owed(self) -> dict[str, str]:
        found = {}
        for shard in range(self.region.layout.shards):
            found |= {name: text for name, text in self.region.owed(shard) if not name.startswith("!")}
        return found
