"""The database: tables, and all SQL by noun. The database is the truth; a message is only a doorbell."""

from winnow.store.engine import Database, now

__all__ = ["Database", "now"]
