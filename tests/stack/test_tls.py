"""Everything over TLS, with certificates of the test's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import trustme

from ports import free_port
from stack_processes import Stack
from stoker import Client, Config, RedisUnavailable
from stoker.store.address import SentinelAddress
from stoker_ops.embedded import EmbeddedRedisError, ServerBinary, start

pytestmark = pytest.mark.servers("newest")


@dataclass(frozen=True)
class Encrypted:
    """A server that is reached by TLS only, apart from its private socket."""

    socket_url: str
    port: int
    folder: Path

    def url(self, *, ca: str | None = "ca.pem", client: str | None = "client", host: str = "127.0.0.1") -> str:
        """The URL by which a client trusts a CA and shows a certificate."""
        options = [f"ssl_ca_certs={self.folder / ca}"] if ca else []
        if client:
            pem = self.folder / f"{client}.pem"
            options += [f"ssl_certfile={pem}", f"ssl_keyfile={pem}"]
        return f"rediss://{host}:{self.port}/0?{'&'.join(options)}"


@pytest.fixture
def encrypted(server_binary: ServerBinary, short_tmp: Path) -> Iterator[Encrypted]:
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(short_tmp / "ca.pem")
    other.cert_pem.write_to_path(short_tmp / "other-ca.pem")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(short_tmp / "server.pem")
    ca.issue_cert("a-client.example").private_key_and_cert_chain_pem.write_to_path(short_tmp / "client.pem")
    other.issue_cert("stranger.example").private_key_and_cert_chain_pem.write_to_path(short_tmp / "stranger.pem")
    port, pem = free_port(), str(short_tmp / "server.pem")
    files = ("--tls-cert-file", pem, "--tls-key-file", pem, "--tls-ca-cert-file", str(short_tmp / "ca.pem"))
    listen = ("--bind", "127.0.0.1", "--tls-port", str(port), "--tls-auth-clients", "yes")
    try:
        server = start(short_tmp / "r", ephemeral=True, server=server_binary, extra_args=(*listen, *files))
    except EmbeddedRedisError as error:
        if "tls" not in str(error).lower():
            raise
        pytest.skip(f"{server_binary} was built without TLS")
    with server:
        yield Encrypted(server.url, port, short_tmp)


@pytest.mark.slow
def test_a_stack_and_batch_files_work_over_tls(encrypted: Encrypted, short_tmp: Path) -> None:
    stack = Stack(encrypted.url(), short_tmp, encrypted.socket_url, measured=True)
    try:
        stack.scheduler()
        worker = stack.worker("worker")
        batch_worker = stack.batch_worker()
        with stack.client() as client:
            assert client.submit(prompt="hi", max_tokens=4).result(timeout=60).text
            assert list(client.submit(prompt="hi", max_tokens=4, stream=True).stream())
            lines = [{"prompt": f"line {i}", "max_tokens": 4} for i in range(4)]
            batch = client.batches.create(lines, output=short_tmp / "out.jsonl")
            assert batch.wait(timeout=60).state == "completed"
        for process in (batch_worker, worker):
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    finally:
        stack.end()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ca": None}, "certificate verify failed"),
        ({"ca": "other-ca.pem"}, "certificate verify failed"),
        ({"host": "localhost"}, "certificate verify failed"),
        ({"client": None}, "does not answer"),
        ({"client": "stranger"}, "does not answer"),
    ],
    ids=["the machine's own list", "another CA", "another name", "no certificate", "a stranger's certificate"],
)
def test_whoever_cannot_be_trusted_is_not_talked_to(
    encrypted: Encrypted, changed: dict[str, str | None], reason: str
) -> None:
    url = encrypted.url(**changed)  # type: ignore[arg-type]  # each of them takes None
    config = Config(redis_url=url, retry_timeout_s=0)
    with Client(config=config) as client, pytest.raises(RedisUnavailable, match=reason):
        client.submit(prompt="hi")


def test_nobody_is_answered_without_tls(encrypted: Encrypted) -> None:
    with (
        redis.Redis(port=encrypted.port, socket_timeout=5) as client,
        pytest.raises((redis.ConnectionError, redis.ResponseError)),
    ):
        client.ping()


def test_the_url_of_a_service_says_whom_to_trust() -> None:
    url = "rediss+sentinel://u:pw@h1:1,h2:2/main/3?ssl_ca_certs=/ca.pem&sentinel_password=s"
    address = SentinelAddress.parse(url)
    assert address.tls == {"ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert address.sentinel == {"password": "s"}
