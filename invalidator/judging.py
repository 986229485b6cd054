"""Is this value new enough for who asked? One question for what a cache holds and for what was just loaded. Pure.

In flow what is asked for (a Need) and what is known of a value (its Evidence); out flows yes or the first thing that is
not proven. Ages are judged on the database's clock alone, by an upper bound of it.
"""

from __future__ import annotations

import msgspec

from cdc.events import History, split_stamps
from invalidator.tokens import NEVER_COVERED, NO_LSN, Relation, Token, is_shown, relation

WATERMARK_BYTES = 44
UNKNOWN_MS = -1
SHOWN_LSN = 33
"""Where in a standby's proof stands by which position all that it may show was logged."""


class Need(msgspec.Struct, frozen=True):
    """What a caller asks for. `bound_ms`: how old a value may be, None without a bound. `strong`: load it now."""

    bound_ms: int | None = None
    token: Token | None = None
    strong: bool = False
    track: bool = False
    """The caller wants to know what the value showed."""

    @property
    def nothing(self) -> bool:
        """Whether every readable entry will do."""
        return self.bound_ms is None and self.token is None and not self.strong and not self.track


ANY = Need()


class Watermark(msgspec.Struct, frozen=True):
    """How far a shard is: everything logged before `lsn` is applied, and all that `proof` covers; as of `time_ms`."""

    history: History
    lsn: str = NO_LSN
    time_ms: int = UNKNOWN_MS
    proof: str = ""


NOWHERE_NEAR = Watermark("")


def parse_watermark(watermark: str, epoch: str) -> Watermark:
    """What a shard's two fields say together (docs/protocol.md §2.1). One of an earlier epoch proves nothing."""
    if len(watermark) < WATERMARK_BYTES or watermark[:8] != epoch[:8]:
        return Watermark(epoch[9:])
    return Watermark(epoch[9:], watermark[8:24], int(watermark[32:44], 16), watermark[WATERMARK_BYTES:])


class Evidence(msgspec.Struct, frozen=True):
    """What is known of a value: of which history it is, the proofs of what it shows, and since when it was true.

    `stamps` are shown by themselves. `fresh_ms`: the database's clock at a moment whose every commit is shown.
    """

    history: History
    proofs: tuple[str, ...]
    stamps: tuple[str, ...] = ()
    logged_before: str = NO_LSN
    fresh_ms: int = UNKNOWN_MS
    final: bool = False
    """It was loaded from the primary after the question was asked: there is nothing newer to ask for."""
    showed: str = ""
    """Where it may show more than its first proof says: a proof that tells how much more."""


def of_entry(seen: str, as_of_ms: int, watermark: Watermark, *, event: bool) -> Evidence:
    """Of a readable entry: it shows what its own proof says and whatever its shard has applied."""
    mark = watermark.time_ms
    if event:
        return Evidence(watermark.history, (watermark.proof,), split_stamps(seen[32:]), watermark.lsn, mark)
    if seen[:1] == "p":  # only a primary's snapshot is as new as the clock beside it
        mark = max(mark, as_of_ms)
    return Evidence(watermark.history, (seen, watermark.proof), (), watermark.lsn, mark)


def of_load(history: History, seen: str, as_of_ms: int, watermark: Watermark) -> Evidence:
    """Of what was loaded after `watermark` was read. A standby is as new as the watermark, if it has replayed that."""
    if seen[:1] == "p":
        return Evidence(history, (seen,), fresh_ms=as_of_ms)
    replayed = seen[17:33] if seen[:1] == "s" else NO_LSN
    passed = watermark.history == history and NO_LSN != watermark.lsn <= replayed
    return Evidence(history, (seen,), (), replayed, watermark.time_ms if passed else UNKNOWN_MS)


def objection(need: Need, evidence: Evidence, now_ms: int | None) -> str | None:
    """None if the value will do, or why not: strong, token, old. `now_ms`: an upper bound of the database's clock."""
    if evidence.final:
        return None
    if need.strong:
        return "strong"
    token = need.token
    if token is not None and not token.empty:
        related = relation(token.history, evidence.history)
        shown = related is Relation.SAME and is_shown(
            token, evidence.proofs, stamps=evidence.stamps, logged_before=evidence.logged_before
        )
        if not shown and related is not Relation.EARLIER:
            return "token"
    if need.bound_ms is not None:
        if now_ms is None or evidence.fresh_ms < 0:
            return "old"
        age_ms = now_ms - evidence.fresh_ms
        if not 0 <= age_ms <= need.bound_ms:  # one of the future: a clock jumped, nothing is proven
            return "old"
    return None


def shown_by(evidence: Evidence) -> Token:
    """The token of what a value showed: who presents it is never served an older one."""
    proof = evidence.showed or evidence.proofs[0]
    if evidence.stamps:
        return Token(evidence.history, evidence.stamps)
    if proof[:1] == "p":
        return Token(evidence.history, (), NO_LSN, proof)
    if proof[:1] == "s" and len(proof) > SHOWN_LSN:
        return Token(evidence.history, after=proof[SHOWN_LSN:])
    return Token(evidence.history, seen=NEVER_COVERED)


class DatabaseClock:
    """An upper bound of the primary's clock, from its replies: what it said and the time since it was asked.

    `drift`: so much faster than ours it may run, 0.1 % by default. Times of ours are monotonic seconds.
    """

    def __init__(self, drift: float = 0.001) -> None:
        self._rate = 1 + drift
        self._said: tuple[int, float] | None = None

    def observe(self, time_ms: int, asked: float) -> None:
        """The database's clock was at `time_ms` in the reply to what was sent at `asked`."""
        self._said = (time_ms, asked)

    def at_most_ms(self, now: float) -> int | None:
        """What it shows at most; None while nobody asked."""
        said = self._said
        return None if said is None else said[0] + 1 + int((now - said[1]) * self._rate * 1_000)
