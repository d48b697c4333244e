"""experiments by name"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_experiment_name", "experiment", ["name", "id"])


def downgrade() -> None:
    op.drop_index("ix_experiment_name", "experiment")
