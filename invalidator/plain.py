"""The plain layout's decisions: what is owed to readers that know no guard, and when it is due. Pure.

docs/protocol.md §2.10. A value that the application stores under its own key is removed at once when it changes, and
once more when the change is proven visible: a filler may have read the old row in between. What is to be removed once
more is a *debt*, kept in Redis (`Layout.owed_key`) by the shard that lies beside the key:

    <key>      the fence of its changes: remove the key once a heartbeat's snapshot admits it
    *<view>    the same for the whole view, where single keys became too many
    !<view>    the state of the view's scopes that its keys were swept for last (`swept_for`), or NEVER
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from invalidator.guard import Beat, admits, covers_all, merge
from invalidator.layout import EMPTY_FENCE, ZERO_POSITION, Fence, Scope
from invalidator.views import KeyTemplate

NEVER = "0"
"""A view that is known, and was not swept yet."""

FIRST, PROVEN = "1", "2"
"""Swept for this state of the scopes; and once more, since everything that their fences name is visible."""


class Debt(msgspec.Struct, frozen=True):
    """One key of a plain view that changed at `position`, by `stamps` (ascending)."""

    key: str
    view: str
    position: str
    stamps: tuple[str, ...]


def is_view(name: str) -> bool:
    """Whether a debt is a whole view's. No key begins like that."""
    return name.startswith("*")


def view_debt(view: str) -> str:
    """The name of a whole view's debt."""
    return f"*{view}"


def note_of(view: str) -> str:
    """The field that says what the view was swept for."""
    return f"!{view}"


def is_visible(position: str, stamps: Iterable[str], beat: Beat | None) -> bool:
    """Whether a heartbeat has proven already that everybody sees these changes: then one removal is enough."""
    return beat is not None and beat.position[:8] == position[:8] and covers_all(beat.seen, stamps, position)


def is_due(text: str, beat: Beat) -> bool:
    """Whether the debt with this fence can be paid. Those of an earlier epoch are: its end closed the region."""
    fence = Fence.parse(text)
    if fence.position[:8] != beat.position[:8]:
        return fence.position[:8] < beat.position[:8]
    return admits(fence, beat.seen)


def owe(owed: dict[str, str], debts: Iterable[Debt], beat: Beat | None, owed_max: int) -> None:
    """Add debts; beyond `owed_max` fields a new one is its view's. Twin of `sp1_owe`."""
    for debt in debts:
        name = debt.key if debt.key in owed or len(owed) < owed_max else view_debt(debt.view)
        fence = Fence.parse(owed.get(name, EMPTY_FENCE.text))
        epoch, owed_epoch = debt.position[:8], fence.position[:8]
        if owed_epoch < epoch:
            fence = EMPTY_FENCE
        if owed_epoch <= epoch:
            owed[name] = merge(fence, debt.position, debt.stamps, beat).text


def swept_for(region: Scope | None, view: Scope | None, beat: Beat | None) -> str:
    """What a sweep that begins now is good for: PROVEN or FIRST, open or closed, both scopes' generations.

    PROVEN: both are open, and the heartbeat has seen everything that their fences name.
    """
    generations = "".join(scope.generation if scope else ZERO_POSITION for scope in (region, view))
    if region is None or view is None or region.fence is None or view.fence is None:
        return f"{FIRST}c{generations}"
    fences = (region.fence, view.fence)
    return f"{PROVEN if beat is not None and all(is_due(f.text, beat) for f in fences) else FIRST}o{generations}"


def is_swept(noted: str, wanted: str) -> bool:
    """Whether the sweep that `noted` tells of serves for `wanted` as well."""
    return noted in (wanted, PROVEN + wanted[1:])


def pattern(template: KeyTemplate) -> str:
    """What SCAN is asked for. A template's words hold no character that a pattern gives a meaning to."""
    return "*".join(template.literals)
