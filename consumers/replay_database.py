"""`staleproof replay database`: rebuilds views in regions from the database, beside the live stream and live readers.

In flows an Aim; out flow guarded fills (`rebuild.py`) in stages: order a fence, fill, sweep. Progress goes to stderr
and a state file, from which the same command goes on after it was killed; the summary goes to stdout.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from cdc.errors import ConfigError, TransientError
from consumers import fence
from consumers.progress import Progress
from consumers.regions import open_region, read_views
from consumers.replay_job import Aim, Job, fence_orders
from consumers.resume import Resume
from consumers.settings import Settings
from invalidator.document import nearest
from invalidator.layout import Scope, view_scope
from invalidator.region import Region
from invalidator.views import Mode, View, Views, can_render


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `views`: per view the Counts of `rebuild.py`; `samples`: of a dry run, keys per cause.

    `skipped`: views that say nothing of what their objects are. `complete` False: stopped, and can be gone on with.
    `resumed_at`: keys that an earlier run had done; `seconds` and `keys_per_second` are of this run.
    """

    complete: bool
    dry_run: bool
    regions: tuple[str, ...]
    views: dict[str, dict[str, int]]
    skipped: tuple[str, ...]
    samples: dict[str, list[str]]
    resumed_at: int
    seconds: float
    keys_per_second: float


def run(
    settings: Settings,
    aim: Aim,
    stop: threading.Event,
    *,
    state: Path,
    confirm: Callable[[str], bool],
    as_json: bool,
) -> bool:
    """Do it, and print the summary. False where `stop` ended it, or `confirm` declined.

    Raises ConfigError for an aim that makes no sense, TransientError where a server is away for too long.
    """
    views = read_views(settings.views)
    regions = [open_region(settings, name) for name in aim.regions or sorted(settings.regions)]
    chosen, skipped = choose(aim, views)
    questions = [
        fence.question(order, [r.name for r in regions]) for order in fence_orders(settings, aim, chosen, regions)
    ]
    if questions and not aim.dry_run and not confirm(" ".join(questions)):
        return False
    check_regions(regions, chosen)
    job = Job(settings, aim, stop, Resume(state, plan_of(aim, settings, chosen, regions)), chosen, regions)
    with Progress(None, "keys", as_json) as progress:
        complete = job.run(progress)
        seconds, rate = progress.seconds, progress.per_second
    summary = Summary(
        complete=complete,
        dry_run=aim.dry_run,
        regions=tuple(region.name for region in regions),
        views={name: dict(counts) for name, counts in job.counts.items()},
        skipped=skipped,
        samples=job.samples.keys,
        resumed_at=progress.before,
        seconds=round(seconds, 1),
        keys_per_second=round(rate),
    )
    text = msgspec.json.encode(summary).decode() if as_json else "\n".join(lines_of(summary))
    sys.stdout.write(text + "\n")
    if not complete and not aim.dry_run:
        sys.stderr.write(f"staleproof: stopped; the same command goes on from {state}\n")
    return complete


# --- what is asked for ------------------------------------------------------------------------------------------------


def choose(aim: Aim, views: Views) -> tuple[list[View], tuple[str, ...]]:
    """The views to rebuild, and the names of those left out because nothing says what their objects are.

    Raises ConfigError for options that contradict one another.
    """
    for name in aim.views:
        if name not in views.views:
            raise ConfigError(f"there is no view {name!r} in the views file; {nearest(name, views.views)}")
        if views.views[name].is_plain:
            raise ConfigError(
                f"view {name} has layout: plain: only the application stores its values; there is nothing to rebuild,"
                f" and `staleproof fence --view {name}` removes them all"
            )
    named = [views.views[name] for name in dict.fromkeys(aim.views)]
    narrowed = [option for option, given in _narrowing(aim).items() if given]
    if len(narrowed) > 1:
        raise ConfigError(f"{' and '.join(narrowed)} both choose keys: give one of them")
    for option, given in (("--sweep", aim.sweep), ("--fence-first", aim.fence_first)):
        if given and narrowed:
            raise ConfigError(f"{option} is about all keys of a view, and {narrowed[0]} about some: leave one out")
    if aim.keys:
        return _views_of_keys(aim.keys, named or [view for view in views.views.values() if not view.is_plain]), ()
    if aim.where is not None and len(named) != 1:
        raise ConfigError("--where is a condition on one view: name it with --view")
    if aim.warm_from is not None and aim.warm_from in aim.regions:
        raise ConfigError(f"--warm-from {aim.warm_from} is among the regions to fill: name others with --into")
    if not named and not aim.everything:
        raise ConfigError("nothing to rebuild is named: add --view NAME, --key KEY, or --all for every view")
    if named and aim.everything:
        raise ConfigError("--all means every view, and --view some: leave one of them out")
    if named:
        return named, ()
    able = [view for view in views.views.values() if view.load is not None or view.mode is Mode.REFRESH]
    if not able:
        raise ConfigError("no view of the views file has a `load`: add one to each that should be rebuilt")
    return able, tuple(sorted(views.views.keys() - {view.name for view in able}))


def read_keys(file: Path) -> list[str]:
    """Cache keys, one per line; blank lines are passed over. `-` is stdin. Raises ConfigError."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"the keys file {file} cannot be read: {reason}") from None
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise ConfigError(f"the keys file {file} holds no key: write one per line, such as contact:17")
    return keys


def _narrowing(aim: Aim) -> dict[str, bool]:
    return {"--key": bool(aim.keys), "--where": aim.where is not None, "--warm-from": aim.warm_from is not None}


def _views_of_keys(keys: Sequence[str], views: Sequence[View]) -> list[View]:
    found: dict[str, View] = {}
    for key in keys:
        view = next((view for view in views if can_render(view.key, key)), None)
        if view is None:
            raise ConfigError(f"{key!a} is a key of no view: keys look like {', '.join(v.key.text for v in views)}")
        found[view.name] = view
    return list(found.values())


def check_regions(regions: Sequence[Region], views: Sequence[View]) -> None:
    """Raises TransientError for a region that was never started, ConfigError for one that has other views."""
    for region in regions:
        for shard in range(region.layout.shards):
            header = region.header(shard)
            if not header:
                remedy = f"start `staleproof invalidate --region {region.name}` first"
                raise TransientError(f"region {region.name} has no shard {shard}: {remedy}")
            for view in views:
                text = header.get(view_scope(view.name))
                if text is None or Scope.parse(text).digest != view.digest:
                    raise ConfigError(
                        f"region {region.name} does not know view {view.name} as the views file has it: give its worker"
                        " the same file"
                    )


def plan_of(aim: Aim, settings: Settings, views: Sequence[View], regions: Sequence[Region]) -> dict[str, Any]:
    """What has to be equal for a run to go on where another was killed."""
    return {
        "command": "replay database",
        "source": settings.source.name,
        "views": [[view.name, view.digest, view.load] for view in views],
        "regions": [region.name for region in regions],
        "keys": sha256("\n".join(aim.keys).encode()).hexdigest()[:16] if aim.keys else None,
        "where": aim.where,
        "warm_from": aim.warm_from,
        "fence_first": aim.fence_first,
        "sweep": aim.sweep,
    }


# --- what came of it --------------------------------------------------------------------------------------------------


def lines_of(summary: Summary) -> list[str]:
    """For a ticket: one line per view, one per view and region."""
    what = "dry run, nothing was changed" if summary.dry_run else "done" if summary.complete else "stopped"
    lines = [f"replay database: {what}; {summary.seconds} s, {summary.keys_per_second:,} keys/s"]
    if summary.resumed_at:
        lines.append(f"gone on with after {summary.resumed_at:,} keys of an earlier run")
    for view, counts in summary.views.items():
        general = {name: n for name, n in counts.items() if " " not in name and n}
        lines.append(f"view {view}: {_listed(general)}")
        for region in summary.regions:
            own = {name.removesuffix(f" {region}"): n for name, n in counts.items() if name.endswith(f" {region}")}
            lines.append(f"  region {region}: {_listed(own)}")
    lines += [f"view {name}: left out, it has no `load`" for name in summary.skipped]
    lines += [f"  {cause}, such as: {', '.join(keys)}" for cause, keys in sorted(summary.samples.items()) if keys]
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "nothing"
