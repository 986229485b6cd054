"""What becomes of refused keys, without servers."""

from __future__ import annotations

import threading

import pytest

from cdc.errors import TransientError
from consumers.rebuild import Rebuild, Refused, Stopped, Target
from consumers.view_rows import Objects
from invalidator.layout import Layout
from invalidator.views import load_views

VIEW = load_views("version: 1\nviews:\n  x: {key: 'x:{id}', load: SELECT, tables: {public.x: {}}}", place="v").views[
    "x"
]
HASHED = f"x:~{'0' * 64}"


class Rows:
    view = VIEW

    def of(self, database, keys):
        return Objects({f"x:{part}": b"1" for (part,) in keys})


class Source:
    """Reads, and proves nothing."""

    def load(self, load):
        return load(None), None


class Region:
    name, layout = "eu", Layout()

    def unlink(self, shard, keys):
        raise TransientError("away")


def rebuild_of(refused, rows):
    stop = threading.Event()
    stop.set()
    return Rebuild(rows, Source(), Target(regions=[Region()], stop=stop, refused=refused, patience_seconds=9.0))


def test_a_refused_key_whose_object_cannot_be_told_is_counted_as_refused_in_the_end():
    refused = Refused({"eu": ["x:1", HASHED]})
    assert rebuild_of(refused, Rows()).fill_refused(10) == {"refused eu": 1}
    assert refused.now() == {"eu": ["x:1"]}


def test_refused_keys_are_kept_when_reading_them_again_is_interrupted():
    """Stopped in the middle, they would have been missing in the state file: nobody would have filled them."""

    class Gone(Rows):
        def of(self, database, keys):
            return Objects({})

    refused = Refused({"eu": ["x:1", "x:2"]})
    with pytest.raises(Stopped):
        rebuild_of(refused, Gone()).fill_refused(10)
    assert refused.now() == {"eu": ["x:1", "x:2"]}
