"""set_tenant: numbers that an operator sets for one tenant."""

from __future__ import annotations

import pytest

from protocol.rig import BELL_TTL, GONE, Added, Queue, changes
from stoker.errors import RedisUnavailable
from stoker.store import lookups
from stoker.store import scripts as s

BELL = {"bell": Added([1]), "ttl": {"bell": BELL_TTL}}


def set_tenant(q: Queue, tenant: str, **values: str) -> str:
    """Set numbers for a tenant."""
    return q.store.run(s.set_tenant(tenant, values))


def test_a_number_is_set_and_the_scheduler_told(q: Queue) -> None:
    before = q.before()
    assert set_tenant(q, "acme", weight="2.5") == "OK"
    assert changes(before, q.dump()) == {"tenants": {"acme:weight": "2.5"}} | BELL


def test_setting_it_again_changes_nothing(q: Queue) -> None:
    set_tenant(q, "acme", weight="2.5")
    before = q.before()
    assert set_tenant(q, "acme", weight="2.5") == "OK"
    assert changes(before, q.dump()) == BELL


def test_an_empty_number_unsets_it_and_nothing_of_others(q: Queue) -> None:
    set_tenant(q, "acme", weight="2.5", cap="7")
    set_tenant(q, "other", weight="3")
    assert set_tenant(q, "acme", weight="", cap="") == "OK"
    assert q.store.read(lookups.tenant_settings(q.keys)) == {"other": {"weight": 3.0}}


def test_unsetting_what_is_not_set_changes_nothing(q: Queue) -> None:
    set_tenant(q, "other", weight="3")
    before = q.before()
    assert set_tenant(q, "acme", weight="") == "OK"
    assert changes(before, q.dump()) == BELL


def test_the_last_one_takes_the_key_with_it(q: Queue) -> None:
    set_tenant(q, "acme", weight="2.5")
    before = q.before()
    set_tenant(q, "acme", weight="")
    assert changes(before, q.dump()) == {"tenants": GONE} | BELL


@pytest.mark.parametrize(
    ("tenant", "values"),
    [
        ("a:b", {"weight": "1"}),
        ("", {"weight": "1"}),
        ("t" * 129, {"weight": "1"}),
        ("acme", {}),
        ("acme", {"Weight": "1"}),
        ("acme", {"weight": "-1"}),
        ("acme", {"weight": "1e5"}),
        ("acme", {"weight": "nan"}),
        ("acme", {"weight": "1" * 25}),
    ],
)
def test_a_wrong_tenant_setting_or_number_fails_the_call(q: Queue, tenant: str, values: dict[str, str]) -> None:
    before = q.before()
    with pytest.raises(Exception, match="BADCALL") as raised:
        set_tenant(q, tenant, **values)
    assert not isinstance(raised.value, RedisUnavailable)
    assert changes(before, q.dump()) == {}


def test_a_queue_keeps_so_many_settings_and_no_more(q: Queue) -> None:
    most = s.MAX_TENANT_SETTINGS
    q.redis.hset(q.keys.tenants, mapping={f"t{number}:weight": "1" for number in range(most - 1)})
    assert set_tenant(q, "one", weight="1", cap="1") == "FULL"
    assert set_tenant(q, "one", weight="1") == "OK"
    assert set_tenant(q, "two", weight="1") == "FULL"
    assert set_tenant(q, "one", weight="2") == "OK"
    assert set_tenant(q, "two", weight="") == "OK"
