"""The verdict of a run: what its command concluded from the trials."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("verdict", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "verdict")
