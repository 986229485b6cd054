"""What can befall a site on purpose. Everything that a test breaks here is mended when its site ends.

    site.faults.server("kafka").pause()
    dump = site.faults.redis("eu").take_dump()      # and roll_back(dump), restart_empty(), replica()
    site.faults.proxy("eu").half_open()             # of a site that was made with `proxied=True`
    site.faults.kill_worker("eu")

A server is shared: its data belongs to every site of the session, so two sites' faults must not overlap in time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING

from infra import cache
from infra.processes import ServerProcess, StackError
from infra.proxy import FaultProxy
from infra.redis_faults import RedisFaults
from infra.servers import ServerHandle

if TYPE_CHECKING:
    from infra.site import Site


class SiteFaults:
    """Made by `Site.faults`. Raises StackError where servers or processes are not ours to break, or do not run."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._touched: dict[str, ServerHandle] = {}

    def server(self, name: str) -> ServerHandle:
        """`postgres`, `kafka` or `redis-<region>`: kill, pause, resume, stop, start, restart."""
        known = self._site.servers.processes
        if name not in known:
            raise StackError(
                f"there is no server {name!r} to break; there are {', '.join(known) or 'none'}"
                + ("" if known else ": these servers run for others as well; leave out --staleproof-servers")
            )
        return self._touched.setdefault(name, known[name])

    def redis(self, region: str) -> RedisFaults:
        """Rolled back, emptied or replaced by a late replica: for the region's server as a native process."""
        process = self.server(cache.process_name(region))
        if not isinstance(process, ServerProcess):
            raise StackError(
                f"{process.name} is no process of this machine, so its files cannot be exchanged:"
                " use --staleproof-backend=processes"
            )
        return RedisFaults(process)

    def proxy(self, region: str) -> FaultProxy:
        """The network between the region's Redis and everybody else: late, mute, cut, or pointed elsewhere."""
        if region not in self._site.proxies:
            raise StackError(f"nothing stands in front of region {region!r}: make the site with proxied=True")
        return self._site.proxies[region]

    def kill_capture(self) -> None:
        """Kill -9; `site.start("capture")` starts another."""
        _kill(self._site.running("capture"), "capture")

    def kill_worker(self, region: str) -> None:
        """Kill -9 every worker of the region; `site.start("invalidate", "--region", region)` starts another."""
        _kill(self._site.running("invalidate", "--region", region), f"a worker of region {region!r}")

    def heal(self) -> None:
        """Let every server serve again that this object has handed out."""
        for server in self._touched.values():
            if server.is_alive():
                server.resume()
            else:
                server.start()


def _kill(processes: Iterable[subprocess.Popen[bytes]], what: str) -> None:
    killed = 0
    for process in processes:
        process.kill()
        process.wait()
        killed += 1
    if not killed:
        raise StackError(f"{what} does not run: call site.start_all() first")
