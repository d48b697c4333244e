"""Secrets from files: an environment is there for every child process and every crash report to read, a file is not."""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import SecretStr


def read_secrets(prefix: str, names: Iterable[str]) -> dict[str, object]:
    """What the files hold that the variables PREFIX + NAME + `_FILE` name, less the white space around it.

    Raises ValueError for a file that cannot be read or is empty: nobody is to run without the secret they meant to set.
    """
    found: dict[str, object] = {}
    for name in names:
        variable = f"{prefix}{name.upper()}_FILE"
        if file := os.environ.get(variable):
            found[name] = _read(variable, Path(file))
    return found


def with_password(url: str, password: object) -> str:
    """`url` with `password` (a text or a SecretStr) in it, unless it has one or is the address of a file."""
    text = password.get_secret_value() if isinstance(password, SecretStr) else str(password or "")
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    if not text or not parts.netloc or ":" in user:
        return url
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(text, safe='')}@{place}"))


def _read(variable: str, file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"{variable}: {file} cannot be read ({reason})") from None
    if not text:
        raise ValueError(f"{variable}: {file} is empty")
    return text
