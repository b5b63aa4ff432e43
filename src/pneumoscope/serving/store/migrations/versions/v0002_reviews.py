"""Why an image was not analysed, as a word that the journal counts; the journal's key of an answer; reviews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them; what was not analysed before this step is not written into the journal as if it came today."""
    op.add_column("jobs", sa.Column("cause", sa.String(length=40), nullable=True))
    op.add_column("jobs", sa.Column("journaled", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE jobs SET journaled = true WHERE state IN ('declined', 'quarantined')")
    unwritten = sa.text("NOT journaled AND state IN ('declined', 'quarantined')")
    op.create_index(
        "ix_jobs_unwritten", "jobs", ["id"], unique=False, sqlite_where=unwritten, postgresql_where=unwritten
    )
    op.add_column("results", sa.Column("answer", sa.String(length=32), nullable=True))
    op.create_table(
        "reviews",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("sample", sa.String(length=60), nullable=False),
        sa.Column("inclusion", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("key", sa.String(length=32), nullable=True),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("label", sa.String(length=16), nullable=True),
        sa.Column("certainty", sa.String(length=16), nullable=True),
        sa.Column("answered_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name=op.f("fk_reviews_result_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_reviews_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
        sa.UniqueConstraint("key", name=op.f("uq_reviews_key")),
        sa.UniqueConstraint("result_id", "sample", name="uq_reviews_asked"),
    )
    op.create_index("ix_reviews_open", "reviews", ["answered_at", "id"], unique=False)
    op.create_table(
        "samples",
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("drawn_at", sa.DateTime(), nullable=False),
        sa.Column("strata", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_samples")),
    )
