"""`staleproof replay database`: rebuilds views in regions from the database, beside the live stream and live readers.

In flows an Aim; out flow guarded fills (`rebuild.py`) in stages: order a fence, fill, sweep. Progress goes to stderr
and a state file, from which the same command goes on after it was killed; the summary goes to stdout.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from cdc.control import Raise
from cdc.errors import ConfigError
from consumers import fence
from consumers.database import open_database
from consumers.preview import Preview, Samples
from consumers.progress import Every, Progress, RateLimit
from consumers.rebuild import Counts, Rebuild, Stopped, Target
from consumers.regions import open_region, read_views
from consumers.resume import Resume
from consumers.settings import Settings, SourceSettings
from consumers.view_rows import SESSION, Parts, ViewRows
from invalidator.document import nearest
from invalidator.layout import REGION_SCOPE, Scope, view_scope
from invalidator.loading import ProvenSource
from invalidator.region import Region
from invalidator.views import Mode, View, Views, can_render

OPEN_SECONDS = 60.0
SAVE_SECONDS = 1.0


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants rebuilt. `views` empty: those of `keys`, or with `everything` all that can be.

    `keys`: cache keys. `where`: SQL over the columns of the view's `load` (refreshed views: of the table).
    `warm_from`: a region whose keys are taken; their values come from the database. `rate`: keys per second.
    """

    views: tuple[str, ...] = ()
    everything: bool = False
    regions: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    where: str | None = None
    warm_from: str | None = None
    fence_first: bool = False
    sweep: bool = False
    dry_run: bool = False
    parallel: int = 3
    batch: int = 500
    rate: float | None = None
    patience_seconds: float = 60.0
    statement_seconds: int = 60


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `views`: per view the Counts of `rebuild.py`; `samples`: of a dry run, keys per cause.

    `skipped`: views that say nothing of what their objects are. `complete` False: stopped, and can be gone on with.
    """

    complete: bool
    dry_run: bool
    regions: tuple[str, ...]
    views: dict[str, dict[str, int]]
    skipped: tuple[str, ...]
    samples: dict[str, list[str]]
    seconds: float
    keys_per_second: float


class Stage(msgspec.Struct, frozen=True):
    """One step of the plan: fence a view, fill its pages, fill keys, or sweep what is cached of it."""

    kind: Literal["fence", "pages", "keys", "sweep"]
    view: str


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
    questions = [fence.question(order, [r.name for r in regions]) for order in _orders(settings, aim, chosen, regions)]
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
    named = [views.views[name] for name in dict.fromkeys(aim.views)]
    narrowed = [option for option, given in _narrowing(aim).items() if given]
    if len(narrowed) > 1:
        raise ConfigError(f"{' and '.join(narrowed)} both choose keys: give one of them")
    for option, given in (("--sweep", aim.sweep), ("--fence-first", aim.fence_first)):
        if given and narrowed:
            raise ConfigError(f"{option} is about all keys of a view, and {narrowed[0]} about some: leave one out")
    if aim.keys:
        return _views_of_keys(aim.keys, named or list(views.views.values())), ()
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
    """Raises ConfigError for a region that could take no fill of these views, now or later."""
    for region in regions:
        for shard in range(region.layout.shards):
            header = region.header(shard)
            if not header:
                remedy = f"start `staleproof invalidate --region {region.name}` first"
                raise ConfigError(f"region {region.name} has no shard {shard}: {remedy}")
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


def stages_of(aim: Aim, views: Sequence[View]) -> list[Stage]:
    """The steps, in order."""
    stages = [Stage("fence", view.name) for view in views] if aim.fence_first else []
    kind: Literal["pages", "keys"] = "keys" if aim.keys or aim.warm_from is not None else "pages"
    stages += [Stage(kind, view.name) for view in views]
    return stages + ([Stage("sweep", view.name) for view in views] if aim.sweep else [])


def _orders(settings: Settings, aim: Aim, views: Sequence[View], regions: Sequence[Region]) -> list[Raise]:
    if not aim.fence_first:
        return []
    reason = "replay --fence-first"
    where = [None] if {region.name for region in regions} == set(settings.regions) else [r.name for r in regions]
    return [
        Raise(source=settings.source.name, position="", region=region, view=view.name, key=None, reason=reason)
        for view in views
        for region in where
    ]


# --- doing it ---------------------------------------------------------------------------------------------------------


class Step(msgspec.Struct, frozen=True):
    """Some keys to work on. `mark`: where to go on after them."""

    number: int
    keys: int
    mark: Any
    work: Callable[[], Counts]


class Feed(Protocol):
    """The steps of one stage, in order. Thread-safe."""

    def take(self, rebuild: Rebuild) -> Step | None:
        """The next one; None at the end."""


class Pages:
    """All objects of a view: each page begins where the one before ended, so they are loaded one after the other."""

    def __init__(self, after: Parts | None, limit: int) -> None:
        self._after = after
        self._limit = limit
        self._number = 0
        self._ended = False
        self._lock = threading.Lock()

    def take(self, rebuild: Rebuild) -> Step | None:
        """Load a page; filling it is the step's work."""
        with self._lock:
            if self._ended:
                return None
            objects, proof = rebuild.load_page(self._after, self._limit)
            self._after, self._ended = objects.last, objects.last is None
            self._number += 1
            rows = len(objects.values) + objects.keyless
            return Step(self._number, rows, objects.last, lambda: rebuild.fill(objects, proof))


class Keys:
    """Keys of a list, in pieces; `after` is the last that is done."""

    def __init__(self, keys: Sequence[str], limit: int, work: Callable[[Rebuild, Sequence[str]], Counts]) -> None:
        self._keys = keys
        self._limit = limit
        self._work = work
        self._number = 0
        self._lock = threading.Lock()

    def take(self, rebuild: Rebuild) -> Step | None:
        """The next piece."""
        with self._lock:
            start = self._number * self._limit
            keys = self._keys[start : start + self._limit]
            self._number += 1
        if not keys:
            return None
        return Step(self._number, len(keys), keys[-1], lambda: self._work(rebuild, keys))


class Job:
    """The stages of one command, and how far they are."""

    def __init__(
        self,
        settings: Settings,
        aim: Aim,
        stop: threading.Event,
        resume: Resume,
        views: Sequence[View],
        regions: Sequence[Region],
    ) -> None:
        self.counts: dict[str, Counts] = {view.name: Counter() for view in views}
        self.samples = Samples()
        self._settings = settings
        self._aim = aim
        self._stop = stop
        self._resume = resume
        self._views = {view.name: view for view in views}
        self._regions = regions
        self._stages = stages_of(aim, views)
        self._at = 0
        self._mark: Any = None
        self._save_due = Every(SAVE_SECONDS)
        self._lock = threading.Lock()

    def run(self, progress: Progress) -> bool:
        """Every stage that is not done. False when stopped."""
        self._go_on(progress)
        while self._at < len(self._stages):
            stage = self._stages[self._at]
            try:
                if stage.kind == "fence":
                    self._fence(stage)
                else:
                    self._work(stage, progress)
            except Stopped:
                pass
            if self._stop.is_set():
                self._save()
                return False
            self._at, self._mark = self._at + 1, None
            self._save()
        if not self._aim.dry_run:
            self._resume.done()
        return True

    def _go_on(self, progress: Progress) -> None:
        known = None if self._aim.dry_run else self._resume.load()
        if known is not None:
            self._at, self._mark = known["stage"], known["mark"]
            self.counts |= {name: Counter(counts) for name, counts in known["counts"].items()}
            progress.begin_at(known["done"])

    def _save(self) -> None:
        if self._aim.dry_run:
            return
        done = sum(counts["read"] + counts["absent"] + counts["hashed"] for counts in self.counts.values())
        counts = {name: dict(counts) for name, counts in self.counts.items()}
        self._resume.save({"stage": self._at, "mark": self._mark, "done": done, "counts": counts})

    def _fence(self, stage: Stage) -> None:
        """Order it, and wait until every region has obeyed and is open again."""
        if self._aim.dry_run:
            return
        view = self._views[stage.view]
        before = {(r, shard): _generation(r, shard, view) for r in self._regions for shard in range(r.layout.shards)}
        for order in _orders(self._settings, self._aim, [view], self._regions):
            fence.publish(self._settings, order)
        for (region, shard), old in before.items():
            waited = 0.0
            while (now := _generation(region, shard, view)) is None or now == old:
                if waited > OPEN_SECONDS:
                    message = f"region {region.name} did not obey the fence of view {view.name} within {waited:.0f} s"
                    raise ConfigError(f"{message}: look whether its worker runs, then run the same command again")
                if self._stop.wait(0.1):
                    return
                waited += 0.1

    def _work(self, stage: Stage, progress: Progress) -> None:
        """One stage by several threads. The first failure of one ends them all."""
        feed, total = self._feed(stage)
        order = _InOrder()
        limit = RateLimit(self._aim.rate, wait=self._stop.wait)
        failures: list[BaseException] = []

        def finish(step: Step, counts: Counts) -> None:
            with self._lock:
                for mark, found in order.finish(step.number, step.mark, counts):
                    self._mark = mark
                    self.counts[stage.view] += found
                progress.advance(step.keys)
                if self._save_due.due():
                    self._save()

        def work() -> None:
            try:
                with self._rebuild(stage) as rebuild:
                    while not self._stop.is_set() and not failures and (step := feed.take(rebuild)) is not None:
                        limit.spend(step.keys)
                        finish(step, step.work())
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again below, by the thread that waits
                failures.append(error)

        progress.expect(total)
        threads = [threading.Thread(target=work, name=f"replay-{n}", daemon=True) for n in range(self._aim.parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            self._save()
            raise failures[0]

    def _feed(self, stage: Stage) -> tuple[Feed, int]:
        view, batch = self._views[stage.view], self._aim.batch
        if stage.kind == "pages":
            with self._rows(view) as (rows, database):
                total = max(0, rows.estimate(database) - self.counts[view.name]["read"])
            return Pages(None if self._mark is None else tuple(self._mark), batch), total
        if stage.kind == "sweep":
            names = {key for region in self._regions for key in _cached(region, view)}
            work = Rebuild.sweep
        else:
            work = Rebuild.fill_keys
            if self._aim.warm_from is not None:
                names = set(_cached(open_region(self._settings, self._aim.warm_from), view))
            else:
                names = {key for key in self._aim.keys if can_render(view.key, key)}
        keys = sorted(key for key in names if self._mark is None or key > self._mark)
        return Keys(keys, batch, work), len(keys)

    @contextmanager
    def _rebuild(self, stage: Stage) -> Iterator[Rebuild]:
        """A rebuild, or its preview, on a connection of its own."""
        target = Target(regions=self._regions, stop=self._stop, patience_seconds=self._aim.patience_seconds)
        with self._rows(self._views[stage.view]) as (rows, database):
            source = ProvenSource(lambda: nullcontext(database))
            yield Preview(rows, source, target, self.samples) if self._aim.dry_run else Rebuild(rows, source, target)

    @contextmanager
    def _rows(self, view: View) -> Iterator[tuple[ViewRows, Any]]:
        source: SourceSettings = self._settings.source
        with open_database(
            source.dsn.get_secret_value(),
            timeout_seconds=source.connect_timeout_seconds,
            statement_seconds=self._aim.statement_seconds,
            session=SESSION,
        ) as database:
            yield ViewRows(database, view, self._aim.where), database


class _InOrder:
    """Steps end in any order; what counts as done are those before which none is missing."""

    def __init__(self) -> None:
        self._next = 1
        self._early: dict[int, tuple[Any, Counts]] = {}

    def finish(self, number: int, mark: Any, counts: Counts) -> list[tuple[Any, Counts]]:
        """The steps that are done with this one, in order."""
        self._early[number] = mark, counts
        done = []
        while self._next in self._early:
            done.append(self._early.pop(self._next))
            self._next += 1
        return done


def _generation(region: Region, shard: int, view: View) -> str | None:
    """Of the region and the view, as entries of the view must carry it; None while one of them is closed."""
    header = region.header(shard)
    scopes = [Scope.parse(header[name]) for name in (REGION_SCOPE, view_scope(view.name)) if name in header]
    if len(scopes) < 2 or not all(scope.open for scope in scopes):
        return None
    return "".join(scope.generation for scope in scopes)


def _cached(region: Region, view: View) -> Iterator[str]:
    return (key for key in region.keys(view.key.literals[0]) if can_render(view.key, key))


# --- what came of it --------------------------------------------------------------------------------------------------


def lines_of(summary: Summary) -> list[str]:
    """For a ticket: one line per view, one per view and region."""
    what = "dry run, nothing was changed" if summary.dry_run else "done" if summary.complete else "stopped"
    lines = [f"replay database: {what}; {summary.seconds} s, {summary.keys_per_second:,} keys/s"]
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
