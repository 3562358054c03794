"""`stoker tenants`: what is set for tenants, and what they did."""

from __future__ import annotations

import json

import pytest

from cli.conftest import Cli
from cli.test_json import check


def test_a_queue_without_tenants_says_how_to_name_one(cli: Cli) -> None:
    assert "stoker submit --tenant" in cli("tenants", "list").output
    assert check("tenants list", cli("tenants", "list", "--json").stdout) == []


def test_a_weight_is_set_shown_and_unset(cli: Cli) -> None:
    assert check("tenants set", cli("tenants", "set", "acme", "--weight", "2.5", "--json").stdout)["weight"] == 2.5
    assert check("tenants show", cli("tenants", "show", "acme", "--json").stdout)["set"] == ["weight"]
    [one] = check("tenants list", cli("tenants", "list", "--json").stdout)
    assert (one["tenant"], one["weight"]) == ("acme", 2.5)
    assert check("tenants unset", cli("tenants", "unset", "acme", "--json").stdout)["weight"] == 1
    assert json.loads(cli("tenants", "list", "--json").stdout) == []


def test_a_tenant_that_submitted_is_listed_with_its_counts(cli: Cli) -> None:
    cli("submit", "hello", "--tenant", "acme", "--no-wait")
    cli("tenants", "set", "beta", "--weight", "4")
    acme, beta = json.loads(cli("tenants", "list", "--json").stdout)
    assert (acme["tenant"], acme["counts"]["waiting"], acme["set"]) == ("acme", 1, [])
    assert (beta["tenant"], beta["counts"]) == ("beta", {})
    shown = cli("tenants", "list").output
    assert all(word in shown for word in ("acme", "beta", "weight", "waiting", "submitted"))


@pytest.mark.parametrize("weight", ["0", "0.0001", "1001", "nan", "inf", "-1"])
def test_a_weight_that_cannot_be_is_refused_with_its_limits(cli: Cli, weight: str) -> None:
    refused = cli("tenants", "set", "acme", "--weight", weight)
    assert refused.exit_code == 2
    assert "weight" in refused.output
    assert "0.001 to 1000" in refused.output
    assert json.loads(cli("tenants", "list", "--json").stdout) == []


def test_a_set_without_anything_to_set_is_refused(cli: Cli) -> None:
    refused = cli("tenants", "set", "acme")
    assert refused.exit_code == 2
    assert "weight" in refused.output


def test_a_name_that_no_tenant_can_have_is_refused(cli: Cli) -> None:
    for command in (("show", "a:b"), ("set", "a:b", "--weight", "1"), ("unset", "a:b")):
        refused = cli("tenants", *command)
        assert refused.exit_code == 2
        assert "tenant" in refused.output


def test_a_tenants_own_limit_holds_for_it_alone(cli: Cli) -> None:
    set_to = check("tenants set", cli("tenants", "set", "acme", "--max-waiting", "1", "--json").stdout)
    assert (set_to["max_waiting"], set_to["max_tokens"], set_to["set"]) == (1, None, ["max_waiting"])
    assert cli("submit", "hello", "--tenant", "acme", "--no-wait").exit_code == 0
    refused = cli("submit", "hello", "--tenant", "acme", "--no-wait")
    assert refused.exit_code != 0
    assert "tenant_max_waiting" in refused.stderr
    assert cli("submit", "hello", "--tenant", "beta", "--no-wait").exit_code == 0


def test_a_limit_that_is_no_whole_number_is_refused(cli: Cli) -> None:
    for value in ("0", "-1", "1.5"):
        assert cli("tenants", "set", "acme", "--max-tokens", value).exit_code == 2
