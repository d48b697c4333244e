"""a dataset may be in removal: no column is new, and older code does not know the state"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    op.execute("UPDATE dataset SET status = 'failed', error = 'it was being removed' WHERE status = 'removing'")
