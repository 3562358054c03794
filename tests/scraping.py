"""Reads what exporters say, for tests."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


def get(url: str, timeout: float = 20) -> tuple[int, str]:
    """Return status and body of an answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def beside(url: str, path: str) -> str:
    """Return the URL of another path of the same exporter."""
    return url.removesuffix("/metrics") + path


def scrape(url: str) -> dict[str, Metric]:
    """Return the families that an exporter gives, by name."""
    status, text = get(url)
    assert status == 200, text
    return {family.name: family for family in text_string_to_metric_families(text)}


def total(families: dict[str, Metric], name: str, **labels: str) -> float | None:
    """Return the sum of the samples of this name whose labels include these, None where there is none."""
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None
