"""The settings file: TOML, `name = value` a line, with the names that `stoker config show` prints.

It is read where `STOKER_CONFIG` names it and nowhere else: a file that is found by chance in a folder would make the
same command mean something else there.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from stoker.errors import ConfigError

VARIABLE = "STOKER_CONFIG"
MOST_BYTES = 1 << 20

log = logging.getLogger("stoker")


def config_path() -> Path | None:
    """Return the settings file that the environment names, None where it names none."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def read_config_file(path: Path) -> dict[str, Any]:
    """Return what stands in the file, not yet checked. Raises `ConfigError` for a file that is missing or no TOML.

    Warns, once a process, where everybody on the machine can read a password in it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{VARIABLE}: {path} cannot be read ({error.strerror})") from None
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{path}: must have at most {MOST_BYTES} bytes")
    try:
        values = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no TOML file ({error})") from None
    if mode & stat.S_IROTH and has_password(str(values.get("redis_url", ""))):
        _warn_exposed(path)
    return values


def has_password(url: str) -> bool:
    """Return whether a URL carries a password."""
    address, _, query = url.partition("://")[2].partition("?")
    return ":" in address.rpartition("@")[0] or "password=" in query


@functools.cache
def _warn_exposed(path: Path) -> None:
    log.warning("%s has a password in redis_url, and everybody on this machine can read it: chmod o-r %s", path, path)
