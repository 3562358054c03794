"""A Redis that knows the users of ops/redis, each with a password of this test run."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start

OPS_REDIS = Path(__file__).parents[1] / "ops" / "redis"
PASSWORD = secrets.token_hex(32)
ROOT = "root"
"""Who may do everything: the test itself."""


def has_selectors(server: ServerBinary) -> bool:
    """Whether a server's users can be granted a command on some keys and another on others."""
    return server.version >= (7, 0, 0)


def users_of(server: ServerBinary) -> str:
    """The users for a server, switched on as docs/security.md says, and one for the test."""
    text = (OPS_REDIS / ("users.acl" if has_selectors(server) else "users-6.2.acl")).read_text()
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    known = text.replace(" off resetchannels", f" on #{digest} resetchannels").replace("user default on", "user default off")
    return f"{known}user {ROOT} on #{digest} allchannels allkeys allcommands\n"


@contextlib.contextmanager
def start_with_roles(server: ServerBinary, directory: Path) -> Iterator[EmbeddedRedis]:
    """Run a server that knows the users."""
    users = directory / "users.acl"
    users.write_text(users_of(server))
    options = ("--appendonly", "no", "--aclfile", str(users))
    with start(directory / "redis", ephemeral=True, server=server, extra_args=options) as running:
        yield running


def role_url(server: EmbeddedRedis, user: str) -> str:
    """The URL by which a user connects."""
    return server.url.replace("unix://", f"unix://{user}:{PASSWORD}@", 1)
