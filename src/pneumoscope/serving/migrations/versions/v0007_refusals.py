"""How often a destination had not got what it took, apart from the attempts to send it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the count, from nought."""
    op.add_column("deliveries", sa.Column("refusals", sa.Integer(), server_default="0", nullable=False))
