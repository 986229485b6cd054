"""Django's ORM: loads run inside `atomic()`, on the connection that the ORM uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, models, transaction

from invalidator import CacheReader, Region, Token, Views
from tests.examples.contact import Contact


class ContactModel(models.Model):  # noqa: DJ008 - nobody prints one here
    id = models.IntegerField(primary_key=True)
    email = models.TextField()
    status = models.TextField()

    class Meta:
        app_label = "shop"
        db_table = "contacts"
        managed = False


@contextmanager
def sessions() -> Iterator[Any]:
    with transaction.atomic():
        yield connection


def load_contact(session: Any, contact_id: int) -> Contact | None:
    row = ContactModel.objects.using(session.alias).filter(pk=contact_id).first()
    return None if row is None else Contact(row.id, row.email, row.status)


class Contacts:
    def __init__(self, region: Region, views: Views) -> None:
        self.reader = CacheReader(region, views, sessions)
        self.contact = self.reader.view("contact", load_contact, type=Contact, max_staleness=5)

    def set_status(self, contact_id: int, status: str) -> Token:
        with transaction.atomic():
            ContactModel.objects.filter(pk=contact_id).update(status=status)
            return self.reader.token(connection)
