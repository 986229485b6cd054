"""A change is posted in one region, and the page after it is served in another: what was seen travels in a cookie."""

from typing import Annotated

from fastapi import Cookie, FastAPI, Response

from invalidator import Region, Session, Views
from tests.examples.contact import Contact
from tests.examples.plain_psycopg import Contacts, Pool


def make_app(region: Region, views: Views, pool: Pool) -> FastAPI:
    contacts = Contacts(region, views, pool)
    app = FastAPI()

    @app.post("/contacts/{contact_id}", status_code=303)
    def save(contact_id: int, status: str, response: Response, seen: Annotated[str, Cookie()] = "") -> None:
        session = Session(seen)
        session.add(contacts.set_status(contact_id, status))
        remember(session, response)
        response.headers["Location"] = f"/contacts/{contact_id}"

    @app.get("/contacts/{contact_id}")
    def show(contact_id: int, response: Response, seen: Annotated[str, Cookie()] = "") -> Contact | None:
        session = Session(seen)
        found = contacts.contact.get(contact_id, token=session)
        remember(session, response)
        return found

    return app


def remember(session: Session, response: Response) -> None:
    response.set_cookie("seen", session.text, max_age=3600, httponly=True, samesite="lax")
