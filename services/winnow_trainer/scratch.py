"""A trainer's work space: one directory an attempt, `ID-aN`, gone when the attempt has ended."""

import re
import shutil
from pathlib import Path

from winnow.store import Database
from winnow.store.claims import INGEST, TRAIN
from winnow.telemetry import logger

_NAME = re.compile(r"(?P<id>[0-9a-f]{24})-a(?P<attempt>\d+)")
_log = logger("trainer.scratch")


def make(root: Path, id: str, attempt: int) -> Path:
    """An empty directory for one attempt. What killed attempts of the same row left is removed."""
    for left in root.glob(f"{id}-a*"):
        remove(left)
    made = place(root, id, attempt)
    made.mkdir(parents=True)
    return made


def place(root: Path, id: str, attempt: int) -> Path:
    """Where an attempt works."""
    return root / f"{id}-a{attempt}"


def remove(directory: Path) -> None:
    """Remove an attempt's directory, as far as it can be removed."""
    shutil.rmtree(directory, ignore_errors=True)


def sweep(root: Path, database: Database) -> None:
    """Remove what attempts that hold no claim any more left here. Rows of another database are not touched."""
    found = [(path, match) for path in root.glob("*-a*") if (match := _NAME.fullmatch(path.name))]
    for path, match in found:  # listed first: a claim comes before its directory
        if _is_over(database, match["id"], int(match["attempt"])):
            _log.info("scratch.swept", directory=str(path))
            remove(path)


def _is_over(database: Database, id: str, attempt: int) -> bool:
    with database.read() as session:
        rows = [(work, session.get(work.table, id)) for work in (INGEST, TRAIN)]
    known = [(work, row) for work, row in rows if row is not None]
    return bool(known) and not any(row.status == work.working and row.attempt == attempt for work, row in known)
