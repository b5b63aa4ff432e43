"""Deliveries by state and time, which the technical page asks for every few seconds."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_deliveries_times", "deliveries", ["state", "sent_at"], unique=False)
