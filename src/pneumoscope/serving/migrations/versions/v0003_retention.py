"""Which images were committed, and users that an issuer vouches for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column to images and one to users."""
    op.add_column("images", sa.Column("committed_at", sa.DateTime(), nullable=True))
    op.add_column("users", sa.Column("subject", sa.Text(), nullable=True))
    op.create_index(op.f("ix_users_subject"), "users", ["subject"], unique=True)
