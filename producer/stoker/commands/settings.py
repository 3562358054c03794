"""`stoker config show`: every setting, its value, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stoker.command import guarded, local_url, print_json

if TYPE_CHECKING:
    from stoker.config import Config

UNITS = ("ms", "s", "bytes")


@click.group()
def config() -> None:
    """Look at the settings.

    \b
    Example:  stoker config show
    """


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@guarded
def show(as_json: bool) -> None:
    """Print every setting: its value, what it means, and where it comes from.

    Each can be set by STOKER_ and its name in capitals, else in a TOML file (name = value) that STOKER_CONFIG names.
    Passwords in URLs are left out.

    \b
    Examples:  stoker config show
               STOKER_HEARTBEAT_MS=500 stoker config show --json
               STOKER_CONFIG=/etc/stoker.toml stoker config show
    """
    from stoker.config import load_config

    settings = all_settings(load_config())
    if as_json:
        print_json(settings)
        return
    from stoker.table import Column, FittedTable, print_tables

    columns = (
        Column("setting"),
        Column("value", fold=True),
        Column("unit", drop=1),
        Column("from"),
        Column("meaning", drop=2),
    )
    rows = [
        (name, "-" if facts["value"] is None else str(facts["value"]), facts["unit"], facts["source"], facts["meaning"])
        for name, facts in settings.items()
    ]
    print_tables(FittedTable("settings", columns, rows))


def all_settings(config: Config) -> dict[str, dict[str, Any]]:
    """Return each setting by its name: value, unit, source, variable, meaning.

    The source is `environment`, the path of the settings file, `local stack` or `default`.
    """
    from stoker.config import ENV_PREFIX, origins

    outside = origins()
    return {
        name: {
            "value": _value(config, name),
            "unit": next((unit for unit in UNITS if name.endswith(f"_{unit}")), ""),
            "source": outside.get(name) or _source(config, name),
            "variable": ENV_PREFIX + name.upper(),
            "meaning": field.description,
        }
        for name, field in type(config).model_fields.items()
    }


def _value(config: Config, name: str) -> Any:
    from stoker.store.address import redact

    value = getattr(config, name)
    if name != "redis_url":
        return value
    url = value or local_url(config)
    return redact(url) if url else None


def _source(config: Config, name: str) -> str:
    return "local stack" if name == "redis_url" and local_url(config) else "default"
