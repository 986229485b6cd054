"""What the other examples read: one object of the view `contact`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contact:
    id: int
    email: str
    status: str
