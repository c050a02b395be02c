"""Compile results in the database, so that no candidate is compiled twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as upsert

from autotune.store.database import Session
from autotune.store.tables import CompileResultRow


class StoredCache:
    """A :class:`autotune.core.Cache` over the table of compile results, kept in memory too."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        """The value stored under ``key``, or None."""
        if key not in self._known:
            wanted = select(CompileResultRow.value).where(CompileResultRow.key == key)
            with self._session.reading() as connection:
                found = connection.scalars(wanted).one_or_none()
            if found is None:
                return None
            self._known[key] = found
        return dict(self._known[key])

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Store ``value``, in place of an older one; durable on return."""
        # Through JSON, so that the memory gives back what the database would.
        plain = json.loads(json.dumps(value))
        row = {"value": plain, "created_at": self._session.now()}
        statement = upsert(CompileResultRow).values(key=key, **row)
        statement = statement.on_conflict_do_update(index_elements=["key"], set_=row)
        with self._session.writing() as connection:
            connection.execute(statement)
        self._known[key] = plain
