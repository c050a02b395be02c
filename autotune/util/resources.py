"""Where the files that come with the program are."""

from __future__ import annotations

from pathlib import Path


def data_root() -> Path:
    """The folder that holds `search_spaces/` and `alembic/`: `_data` in a wheel, else the repo."""
    package = Path(__file__).parent.parent
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent
