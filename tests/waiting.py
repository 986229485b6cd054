"""Waiting for a condition, with a deadline; never sleeping for luck."""

from infra.waiting import wait_until

__all__ = ["wait_until"]
