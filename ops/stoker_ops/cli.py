"""The commands `stoker up` and `stoker demo`."""

from __future__ import annotations

import click

commands: list[click.Command] = []
