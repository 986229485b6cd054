"""What a mutant is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace `old`, which stands exactly once in `path`, by `new`; `killer` must fail.

    `clause`: the promise and the section of DESIGN that it breaks. `quick`: part of `make test`.
    """

    name: str
    clause: str
    path: str
    old: str
    new: str
    killer: str
    quick: bool = False
