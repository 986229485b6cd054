"""What counts as done, and what is chosen, without servers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from cdc.errors import ConfigError, TransientError
from consumers import fence, replay_job
from consumers.progress import Progress
from consumers.replay_database import Summary, choose, lines_of
from consumers.replay_job import ENDED, Aim, InOrder, Job, Keys, Pages, Stage, Step, for_progress, stages_of
from consumers.resume import Resume
from consumers.view_rows import Objects
from invalidator.layout import EMPTY_FENCE, Layout, Row, Scope, offset_text
from invalidator.views import load_views

VIEWS = load_views(
    """
version: 1
views:
  contact: {key: "contact:{id}", load: SELECT, tables: {public.contacts: {}}}
  segment: {key: "segment:{id}", tables: {public.segments: {}}}
  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}
  raw: {key: "raw:{id}", layout: plain, tables: {public.contacts: {}}}
""",
    place="v",
)


def names(aim):
    views, skipped = choose(aim, VIEWS)
    return [view.name for view in views], skipped


def test_steps_that_end_early_count_when_all_before_them_have_ended():
    order = InOrder()
    assert order.finish(2, "b", Counter(x=2)) == []
    assert order.finish(3, "c", Counter(x=3)) == []
    assert order.finish(1, "a", Counter(x=1)) == [("a", {"x": 1}), ("b", {"x": 2}), ("c", {"x": 3})]
    assert order.finish(4, None, Counter()) == [(None, {})]


def test_all_means_what_can_be_rebuilt_and_says_what_cannot():
    assert names(Aim(everything=True)) == (["contact", "template"], ("raw", "segment"))


def test_keys_name_their_views():
    assert names(Aim(keys=("template:1", "contact:1", "template:2"))) == (["template", "contact"], ())


def test_a_key_of_another_view_than_the_one_named_is_refused():
    with pytest.raises(ConfigError, match="'template:1' is a key of no view"):
        choose(Aim(views=("contact",), keys=("template:1",)), VIEWS)


@pytest.mark.parametrize(
    ("aim", "complaint"),
    [
        (Aim(), "nothing to rebuild is named"),
        (Aim(views=("raw",)), "layout: plain: only the application stores its values"),
        (Aim(keys=("raw:1",)), "'raw:1' is a key of no view: keys look like contact:{id}, segment"),
        (Aim(everything=True, views=("contact",)), "--all means every view, and --view some"),
        (Aim(views=("contact",), keys=("contact:1",), where="true"), "--key and --where both choose keys"),
        (Aim(views=("contact",), warm_from="us", fence_first=True), "--fence-first is about all keys of a view, and --warm-from"),
        (Aim(views=("contact", "template"), where="true"), "--where is a condition on one view"),
    ],
)  # fmt: skip
def test_options_that_contradict_one_another_are_refused(aim, complaint):
    with pytest.raises(ConfigError, match=complaint):
        choose(aim, VIEWS)


def test_every_fence_comes_before_the_first_fill_and_every_sweep_after_the_last():
    views, _ = choose(Aim(everything=True), VIEWS)
    stages = stages_of(Aim(fence_first=True, sweep=True), views)
    assert [stage.kind for stage in stages] == ["fence", "fence", "pages", "pages", "sweep", "sweep"]
    assert [stage.kind for stage in stages_of(Aim(warm_from="us"), views)] == ["keys", "keys"]


def test_keys_are_worked_on_in_pieces_that_say_where_to_go_on():
    done = []
    feed = Keys(["a", "b", "c"], 2, lambda _, keys: Counter(done=done.append(keys) or len(keys)))
    steps = [feed.take(None), feed.take(None), feed.take(None)]
    assert [(step.number, step.keys, step.mark) for step in steps[:2]] == [(1, 2, "b"), (2, 1, "c")]
    assert steps[2] is None
    assert steps[1].work() == {"done": 1}
    assert done == [["c"]]


def test_what_is_shown_meanwhile_is_of_all_regions_together():
    counts = Counter({"read": 9, "filled eu": 4, "filled us": 3, "removed us": 1, "keyless": 1, "hashed": 2})
    assert for_progress(counts) == {"filled": 7, "removed": 1, "skipped": 3}


def test_the_summary_is_lines_for_a_ticket():
    counts = {"read": 1_200, "filled eu": 1_100, "filled us": 900, "refused us": 3}
    summary = Summary(
        complete=True, dry_run=False, regions=("eu", "us"), views={"contact": counts}, skipped=("segment",),
        samples={}, resumed_at=200, seconds=1.5, keys_per_second=800,
    )  # fmt: skip
    assert lines_of(summary) == [
        "replay database: done; 1.5 s, 800 keys/s",
        "gone on with after 200 keys of an earlier run",
        "view contact: 1,200 read",
        "  region eu: 1,100 filled",
        "  region us: 900 filled, 3 refused",
        "view segment: left out, it has no `load`",
    ]


class BareJob(Job):
    """A job whose steps are given, without servers."""

    def __init__(self, tmp_path, steps, stop=None, *, settings=None, regions=(), **aim):
        (view,) = choose(Aim(views=("contact",)), VIEWS)[0]
        resume = Resume(tmp_path / "state", {})
        super().__init__(settings, Aim(**aim), stop or threading.Event(), resume, [view], regions)
        self._steps = iter(steps)

    def _rows(self, view):
        return nullcontext((None, None))

    def _rebuild(self, stage, stop):
        return nullcontext(None)

    def _feed(self, stage):
        return self, 0

    def take(self, rebuild):
        return next(self._steps, None)


def run_at_most(seconds, job):
    """What it raised, if anything, once it has ended."""
    raised = []

    def run():
        try:
            with Progress(None, "keys", as_json=True) as progress:
                job.run(progress)
        except TransientError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return raised


def test_a_failure_ends_also_those_who_wait_for_their_turn(tmp_path):
    """At one key per second the thread beside would have waited 1,000 seconds before it looked."""

    def fail():
        raise TransientError("away")

    job = BareJob(tmp_path, [Step(n, 1_000, n, fail) for n in (1, 2)], rate=1.0, parallel=2)
    assert [str(error) for error in run_at_most(5, job)] == ["away"]


def test_a_stop_ends_those_who_wait_for_their_turn(tmp_path):
    stop = threading.Event()
    steps = [Step(1, 1_000, 1, lambda: stop.set() or Counter(read=1)), Step(2, 1_000, 2, Counter)]
    job = BareJob(tmp_path, steps, stop, rate=1.0, parallel=2)
    assert run_at_most(5, job) == []
    assert json.loads((tmp_path / "state").read_text())["progress"]["mark"] == 1


class OnePage:
    """Stands in for a rebuild: two objects, read in pages."""

    def __init__(self, limit):
        self.limit = limit

    def load_page(self, after, limit):
        left = [part for part in ("1", "2") if after is None or (part,) > tuple(after)]
        last = (left[limit - 1],) if len(left) >= limit else None
        return Objects({f"contact:{part}": b"1" for part in left[:limit]}, last), None

    def fill(self, objects, proof):
        return Counter(read=len(objects.values))


def test_after_the_last_page_nothing_is_read_again(tmp_path):
    """Killed while refused keys wait to be read again, it would have begun anew."""
    job = BareJob(tmp_path, [])
    feed = Pages(None, 2)
    marks = []
    while (step := feed.take(OnePage(2))) is not None:
        marks.append(step.mark)
    assert marks == [("2",), ENDED]
    job._mark = ENDED
    feed, total = Job._feed(job, Stage("pages", "contact"))
    assert (feed.take(None), total) == (None, 0)


def test_a_state_file_that_cannot_be_written_is_told_before_anything_is_done(tmp_path):
    job = BareJob(tmp_path / "nowhere", [Step(1, 1, 1, lambda: pytest.fail("it began"))])
    with Progress(None, "keys", as_json=True) as progress, pytest.raises(ConfigError, match="cannot be written"):
        job.run(progress)


class Shard:
    """A region of one shard whose header is another each time that it is looked at; an exception is raised."""

    name, layout = "eu", Layout()

    def __init__(self, *headers):
        self.headers = list(headers)

    def header(self, shard):
        found = self.headers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def header(generation, next_offset, *, open_=True):
    """A shard's header, with the view in `generation`, that has taken in control records up to an offset."""
    closed = "" if open_ else offset_text(1)
    scope = Scope(generation=generation * 32, digest="0" * 16, closed_at=closed, fence=EMPTY_FENCE if open_ else None)
    return {"s:": scope.text, "s:contact": scope.text, "t:control/0": Row(next_offset=next_offset).text}


def fencing(tmp_path, monkeypatch, region):
    """A job whose order is at offset 10."""
    ordered = fence.Ordered(topic="control", offset=10, source="s", region="eu", view="contact", key=None, reason="")
    monkeypatch.setattr(fence, "publish", lambda settings, order: ordered)
    settings = SimpleNamespace(regions={"eu": None}, source=SimpleNamespace(name="s"))
    return BareJob(tmp_path, [], settings=settings, regions=[region], fence_first=True)


def test_a_fence_is_obeyed_by_a_shard_that_has_taken_in_the_order_and_opened_since(tmp_path, monkeypatch):
    """What opens for an earlier reason will close once more, and then all that was filled meanwhile is unreadable."""
    region = Shard(
        header("1", 5, open_=False), header("2", 5), header("3", 9),
        TransientError("away"), header("3", 11, open_=False), header("4", 12),
    )  # fmt: skip
    job = fencing(tmp_path, monkeypatch, region)
    job._fence(Stage("fence", "contact"))
    assert region.headers == []


def test_a_region_that_is_away_while_its_keys_are_listed_is_waited_for(tmp_path):
    class Flaky(Shard):
        def keys(self, start):
            yield "contact:1"
            if self.headers:
                raise self.headers.pop()
            yield "contact:2"

    job = BareJob(tmp_path, [], regions=[Flaky(TransientError("away"))], sweep=True)
    feed, total = Job._feed(job, Stage("sweep", "contact"))
    assert (total, feed.take(None).mark) == (2, "contact:2")


@pytest.mark.parametrize("progress", [{}, {"stage": -1, "mark": None, "refused": {}, "done": 0, "counts": {}}])
def test_a_state_file_that_does_not_say_how_far_it_was_is_refused(tmp_path, progress):
    job = BareJob(tmp_path, [])
    job._resume.save(progress)
    with Progress(None, "keys", as_json=True) as shown, pytest.raises(ConfigError, match="does not say how far it was"):
        job.run(shown)


def test_a_region_that_does_not_obey_is_away(tmp_path, monkeypatch):
    """A worker that does not run may be started, and the same command goes on: exit code 1."""
    monkeypatch.setattr(replay_job, "OPEN_SECONDS", 0.0)
    with pytest.raises(TransientError, match="region eu did not obey the fence of view contact within 0 s: look"):
        fencing(tmp_path, monkeypatch, Shard(*[header("1", 5)] * 9))._fence(Stage("fence", "contact"))
