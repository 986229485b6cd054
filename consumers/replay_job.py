"""The stages of a rebuild: what is worked on next, by how many threads, and how far it is.

In flow an Aim and the views and regions that it chose; out flow counts per view, and a state file that says what is
done, so that a killed job goes on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec

from cdc.control import Raise
from cdc.errors import ConfigError, TransientError
from consumers import fence
from consumers.database import Database, open_database, publication_facts
from consumers.preview import Preview, Samples
from consumers.progress import Every, Progress, RateLimit
from consumers.rebuild import Counts, Rebuild, Refused, Stopped, Target, patiently
from consumers.regions import open_region
from consumers.resume import Resume
from consumers.settings import Settings, SourceSettings
from consumers.view_rows import SESSION, Parts, ViewRows
from invalidator.layout import REGION_SCOPE, Row, Scope, row_field, view_scope
from invalidator.loading import ProvenSource
from invalidator.region import Region
from invalidator.views import Mode, View, can_render

T = TypeVar("T")

OPEN_SECONDS = 60.0
RETRY_SECONDS = (0.1, 0.5, 2.0)
"""What was refused is read again after so long; what is refused then as well, is left to readers."""

SAVE_SECONDS = 1.0

JOIN_SECONDS = 0.1
"""Whoever waits is told so soon that the command is to stop."""


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


class Stage(msgspec.Struct, frozen=True):
    """One step of the plan: fence a view, fill its pages, fill keys, or sweep what is cached of it."""

    kind: Literal["fence", "pages", "keys", "sweep"]
    view: str


def stages_of(aim: Aim, views: Sequence[View]) -> list[Stage]:
    """The steps, in order."""
    stages = [Stage("fence", view.name) for view in views] if aim.fence_first else []
    kind: Literal["pages", "keys"] = "keys" if aim.keys or aim.warm_from is not None else "pages"
    stages += [Stage(kind, view.name) for view in views]
    return stages + ([Stage("sweep", view.name) for view in views] if aim.sweep else [])


def fence_orders(settings: Settings, aim: Aim, views: Sequence[View], regions: Sequence[Region]) -> list[Raise]:
    """What is written into the control topic for --fence-first: one order for all regions, or one for each."""
    if not aim.fence_first:
        return []
    reason = "replay --fence-first"
    where = [None] if {region.name for region in regions} == set(settings.regions) else [r.name for r in regions]
    return [
        Raise(source=settings.source.name, position="", region=region, view=view.name, key=None, reason=reason)
        for view in views
        for region in where
    ]


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


ENDED = "ended"
"""The mark after the last page: nothing is left of the stage but what was refused."""


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
            mark = ENDED if self._ended else self._after
            return Step(self._number, rows, mark, lambda: rebuild.fill(objects, proof))


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


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is. `mark`: in its stage, None at the start; the parts of a key, a key, or ENDED.

    `refused`: keys of that stage, per region. `done`: keys, for the display. `counts` per view.
    """

    stage: Annotated[int, msgspec.Meta(ge=0)]
    mark: list[str] | str | None
    refused: dict[str, list[str]]
    done: int
    counts: dict[str, dict[str, int]]


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
        self._refused = Refused()
        self._save_due = Every(SAVE_SECONDS)
        self._lock = threading.Lock()

    def run(self, progress: Progress) -> bool:
        """Every stage that is not done. False when stopped."""
        self._go_on(progress)
        for view in self._views.values():
            with self._rows(view):
                pass  # a view that cannot be rebuilt is told before one is fenced; so is a state file, just below
        self._save()
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
        saved = None if self._aim.dry_run else self._resume.load()
        if saved is None:
            return
        try:
            known = msgspec.convert(saved, Standing)
        except msgspec.ValidationError as error:
            place = f"the state file {self._resume.path}"
            raise ConfigError(f"{place} does not say how far it was: remove it to begin anew: {error}") from None
        self._at, self._mark = known.stage, known.mark
        self.counts |= {name: Counter(counts) for name, counts in known.counts.items()}
        self._refused = Refused(known.refused)
        progress.begin_at(known.done)

    def _save(self) -> None:
        if self._aim.dry_run:
            return
        done = sum(counts["read"] + counts["absent"] + counts["hashed"] for counts in self.counts.values())
        counts = {name: dict(counts) for name, counts in self.counts.items()}
        standing = Standing(stage=self._at, mark=self._mark, refused=self._refused.now(), done=done, counts=counts)
        self._resume.save(msgspec.structs.asdict(standing))

    def _fence(self, stage: Stage) -> None:
        """Order it, and wait until every region has obeyed and is open again."""
        if self._aim.dry_run:
            return
        view = self._views[stage.view]
        orders = [
            fence.publish(self._settings, order)
            for order in fence_orders(self._settings, self._aim, [view], self._regions)
        ]
        control, end = row_field(orders[0].topic, 0), max(order.offset for order in orders) + 1
        deadline = time.monotonic() + OPEN_SECONDS
        for region in self._regions:
            for shard in range(region.layout.shards):
                while not _obeyed(self._patiently(region, partial(region.header, shard)), control, end, view):
                    if time.monotonic() > deadline:
                        message = f"region {region.name} did not obey the fence of view {view.name}"
                        remedy = "look whether its worker runs, then run the same command again"
                        raise TransientError(f"{message} within {OPEN_SECONDS:.0f} s: {remedy}")
                    if self._stop.wait(0.1):
                        return

    def _patiently(self, region: Region, call: Callable[[], T]) -> T:
        return patiently(region.name, call, self._stop, self._aim.patience_seconds)

    def _work(self, stage: Stage, progress: Progress) -> None:
        """One stage by several threads. The first failure of one ends them all, also where they wait."""
        feed, total = self._feed(stage)
        order = InOrder()
        ending = threading.Event()
        limit = RateLimit(self._aim.rate, wait=ending.wait)
        failures: list[BaseException] = []

        def finish(step: Step, counts: Counts) -> None:
            with self._lock:
                for mark, found in order.finish(step.number, step.mark, counts):
                    self._mark = mark
                    self.counts[stage.view] += found
                progress.counts["refused"] = sum(map(len, self._refused.now().values()))
                progress.advance(step.keys, **for_progress(counts))
                if self._save_due.due():
                    self._save()

        def work() -> None:
            try:
                with self._rebuild(stage, ending) as rebuild:
                    while not ending.is_set() and (step := feed.take(rebuild)) is not None:
                        limit.spend(step.keys)
                        if not ending.is_set():
                            finish(step, step.work())
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again below, by the thread that waits
                failures.append(error)
                ending.set()

        progress.expect(total)
        threads = [threading.Thread(target=work, name=f"replay-{n}", daemon=True) for n in range(self._aim.parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(JOIN_SECONDS)
                if self._stop.is_set():
                    ending.set()
        if failures:
            self._save()
            raise failures[0]
        if not self._stop.is_set():
            self._fill_refused(stage)

    def _fill_refused(self, stage: Stage) -> None:
        """Read again what was refused; count what is refused in the end."""
        counts = self.counts[stage.view]
        for seconds in RETRY_SECONDS:
            kept = self._refused.now()
            if not kept:
                return
            if self._stop.wait(seconds):
                return
            with self._rebuild(stage, self._stop) as rebuild:
                left = len(set().union(*kept.values()))
                while left > 0 and not self._stop.is_set():
                    counts += rebuild.fill_refused(self._aim.batch)
                    left -= self._aim.batch
        for region, keys in self._refused.now().items():
            counts[f"refused {region}"] += len(keys)
        self._refused = Refused()

    def _feed(self, stage: Stage) -> tuple[Feed, int]:
        view, batch = self._views[stage.view], self._aim.batch

        def cached(region: Region) -> set[str]:
            return self._patiently(region, lambda: set(_cached(region, view)))

        if self._mark == ENDED:
            return Keys((), batch, Rebuild.fill_keys), 0
        if stage.kind == "pages":
            with self._rows(view) as (rows, database):
                total = max(0, rows.estimate(database) - self.counts[view.name]["read"])
            return Pages(None if self._mark is None else tuple(self._mark), batch), total
        if stage.kind == "sweep":
            names = set().union(*map(cached, self._regions))
            work = Rebuild.sweep
        else:
            work = Rebuild.fill_keys
            if self._aim.warm_from is not None:
                names = cached(open_region(self._settings, self._aim.warm_from))
            else:
                names = {key for key in self._aim.keys if can_render(view.key, key)}
        keys = sorted(key for key in names if self._mark is None or key > self._mark)
        return Keys(keys, batch, work), len(keys)

    @contextmanager
    def _rebuild(self, stage: Stage, stop: threading.Event) -> Iterator[Rebuild]:
        """A rebuild, or its preview, on a connection of its own."""
        target = Target(
            regions=self._regions,
            stop=stop,
            refused=self._refused,
            patience_seconds=self._aim.patience_seconds,
        )
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
            yield ViewRows(database, view, self._aim.where, _published(database, source.publication, view)), database


def for_progress(counts: Counts) -> dict[str, int]:
    """What is shown meanwhile: of all regions together; `skipped` are rows and keys that nothing can be done with."""
    shown: Counts = Counter()
    for name, n in counts.items():
        what, _, region = name.partition(" ")
        if region:
            shown[what] += n
        elif what in ("keyless", "hashed"):
            shown["skipped"] += n
    return dict(shown)


class InOrder:
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


def _published(database: Database, publication: str, view: View) -> frozenset[str] | None:
    """The columns of a refreshed view's table that are sent; None of other views, and where that is not known."""
    facts = publication_facts(database, publication) if view.mode is Mode.REFRESH else None
    table = facts.tables.get(view.rules[0].table) if facts is not None else None
    return None if table is None else table.columns


def _obeyed(header: Mapping[str, str], control: str, end: int, view: View) -> bool:
    """Whether a shard has taken in the control records before offset `end`, and the view is open again since.

    That it opened, or has another generation, is not enough: that may be due to what came before our order.
    """
    scopes = [Scope.parse(header[name]) for name in (REGION_SCOPE, view_scope(view.name)) if name in header]
    heard = control in header and Row.parse(header[control]).next_offset >= end
    return heard and len(scopes) == 2 and all(scope.open for scope in scopes)


def _cached(region: Region, view: View) -> Iterator[str]:
    return (key for key in region.keys(view.key.literals[0]) if can_render(view.key, key))
