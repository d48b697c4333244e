"""What several tests of the library start from."""

from pathlib import Path

import pytest
from library.ingests import draw_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of many kinds, and files that are none (`library.ingests`)."""
    return draw_folder(tmp_path / "in")
