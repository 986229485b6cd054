"""FastAPI and SQLAlchemy, both in asyncio: the session that loads is one of the application's own kind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Cookie, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cdc import TransientError
from invalidator import AsyncCacheReader, AsyncRegion, Views


class Base(DeclarativeBase):
    pass


class ContactRow(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    status: Mapped[str]


class Contact(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    email: str
    status: str


async def load_contact(session: AsyncSession, contact_id: int) -> Contact | None:
    row = await session.get(ContactRow, contact_id)
    return None if row is None else Contact.model_validate(row)


def make_app(region: AsyncRegion, views: Views, engine: AsyncEngine) -> FastAPI:
    sessions = async_sessionmaker(engine)
    reader = AsyncCacheReader(region, views, sessions.begin)
    contact = reader.view("contact", load_contact, type=Contact, max_staleness=5)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await reader.aclose()
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/contacts/{contact_id}")
    async def show(contact_id: int, written: Annotated[str, Cookie()] = "") -> Contact:
        found = await contact.get(contact_id, token=written)
        if found is None:
            raise HTTPException(404)
        return found

    @app.put("/contacts/{contact_id}/status", status_code=204)
    async def set_status(contact_id: int, status: str, response: Response) -> None:
        async with sessions.begin() as session:
            await session.execute(update(ContactRow).where(ContactRow.id == contact_id).values(status=status))
            token = await reader.token(session)
        response.set_cookie("written", token.text, max_age=60, httponly=True, samesite="lax")

    @app.exception_handler(TransientError)
    async def away(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "try again"}, 503, {"Retry-After": "1"})

    return app
