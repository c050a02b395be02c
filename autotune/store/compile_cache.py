"""Compile results in the database, so that no candidate is compiled twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as upsert

from autotune.store.database import Session
from autotune.store.tables import CompileResultRow

_LOOKUP_BATCH = 500  # keys in one IN (...)


class StoredCache:
    """A :class:`autotune.core.Cache` over the table of compile results, kept in memory too."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        """The value stored under ``key``, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The values of those of ``keys`` that are stored."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        columns = select(CompileResultRow.key, CompileResultRow.value)
        for start in range(0, len(missing), _LOOKUP_BATCH):
            batch = missing[start : start + _LOOKUP_BATCH]
            with self._session.reading() as connection:
                found = connection.execute(columns.where(CompileResultRow.key.in_(batch)))
                self._known.update({key: value for key, value in found})  # noqa: C416
        return {key: dict(self._known[key]) for key in keys if key in self._known}

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Store ``value``, in place of an older one; durable on return."""
        self.put_many({key: value})

    def put_many(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Store all of ``values`` in one transaction; durable on return."""
        if not values:
            return
        at = self._session.now()
        # Through JSON, so that the memory gives back what the database would.
        plain = {key: json.loads(json.dumps(value)) for key, value in values.items()}
        rows = [{"key": key, "value": value, "created_at": at} for key, value in plain.items()]
        statement = upsert(CompileResultRow)
        statement = statement.on_conflict_do_update(
            index_elements=["key"],
            set_={"value": statement.excluded.value, "created_at": statement.excluded.created_at},
        )
        with self._session.writing() as connection:
            connection.execute(statement, rows)
        self._known.update(plain)
