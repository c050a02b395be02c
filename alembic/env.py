"""Run by Alembic: the program passes an open connection, the `alembic` command a URL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from alembic import context
from autotune.store.database import VERSION_TABLE, database_path, migration_connection
from autotune.store.tables import Base, UtcDateTime


def number_revision(
    migration: MigrationContext,  # noqa: ARG001
    revision: str | Iterable[str | None] | Iterable[str],  # noqa: ARG001
    directives: list[MigrationScript],
) -> None:
    """Call revisions 0001, 0002, …: the program reads their order from the file names."""
    if directives:
        head = ScriptDirectory.from_config(context.config).get_current_head()
        directives[0].rev_id = f"{int(head or 0) + 1:04d}"


def render_item(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """A migration must not depend on our types, which change after it was written."""
    return "sa.DateTime()" if kind == "type" and isinstance(item, UtcDateTime) else False


def migrate(connection: Connection) -> None:
    """Run the migrations in the transaction of ``connection``."""
    settings: dict[str, Any] = {
        "target_metadata": Base.metadata,
        "version_table": VERSION_TABLE,
        "render_as_batch": True,
        "transactional_ddl": True,
        "render_item": render_item,
        "process_revision_directives": number_revision,
    }
    context.configure(connection=connection, **settings)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    path = database_path(context.config.get_main_option("sqlalchemy.url") or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    with migration_connection(path) as connection:
        migrate(connection)
