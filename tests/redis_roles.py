"""A Redis that knows the users of ops/redis, switched on as docs/security.md says."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start

ROOT = Path(__file__).parents[1]
OPS_REDIS = ROOT / "ops" / "redis"
SUPERUSER = "root"
"""Who may do everything: the test itself."""


def has_selectors(server: ServerBinary) -> bool:
    """Whether a server's users can be granted a command on some keys and another on others."""
    return server.version >= (7, 0, 0)


@dataclass(frozen=True)
class Guarded:
    """A server, and the passwords of its users by role."""

    server: EmbeddedRedis
    passwords: dict[str, str]

    def url(self, role: str) -> str:
        """The URL by which a role connects."""
        name = role if role == SUPERUSER else f"stoker-{role}"
        return self.server.url.replace("unix://", f"unix://{name}:{self.passwords[role]}@", 1)


@contextlib.contextmanager
def start_with_roles(server: ServerBinary, folder: Path) -> Iterator[Guarded]:
    """Run a server that knows the users."""
    users = folder / "users.acl"
    shutil.copy(OPS_REDIS / ("users.acl" if has_selectors(server) else "users-6.2.acl"), users)
    [script] = re.findall(r"```sh\n(umask .*?)```", (ROOT / "docs" / "security.md").read_text(), re.DOTALL)
    subprocess.run(["bash", "-euc", script], cwd=folder, check=True)
    passwords = {file.stem: file.read_text().strip() for file in folder.glob("*.password")}
    with users.open("a") as lines:
        lines.write(f"user {SUPERUSER} on >{SUPERUSER} allchannels allkeys allcommands\n")
    with start(folder / "redis", ephemeral=True, server=server, extra_args=("--aclfile", str(users))) as running:
        yield Guarded(running, passwords | {SUPERUSER: SUPERUSER})
