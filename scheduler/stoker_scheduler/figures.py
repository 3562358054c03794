"""All that a scheduler exports: its own work, and, from the one that leads, the whole queue's figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from stoker.config import Config
from stoker_scheduler.families import model_of, queue_families, worker_families
from stoker_scheduler.health import CircuitState, HealthMonitor
from stoker_scheduler.instruments import Instruments
from stoker_scheduler.queue_reader import QueueReader, Reading


class SchedulerFigures(Collector):
    """Collects on each scrape.

    1. What this scheduler does is its own, and adds up over schedulers.
    2. What is the queue's comes from the leader alone, so that it adds up, too. Redis says who leads, in the reading
       itself: one that was deposed and does not know it yet keeps silent.
    3. While Redis is away, `stoker_redis_up` is 0 and the queue's figures are missing, not stale.
    """

    def __init__(
        self, config: Config, instruments: Instruments, health: HealthMonitor, token: Callable[[], str]
    ) -> None:
        """Export for the scheduler whose leader's token `token` returns, empty while it stands by."""
        self._config = config
        self._instruments = instruments
        self._health = health
        self._token = token
        self._reader = QueueReader(config)

    def close(self) -> None:
        """Close the connections to Redis."""
        self._reader.close()

    def ready(self) -> str:
        """Return why this scheduler neither leads nor could take over now; empty if it does or could."""
        unheard_s = self._instruments.unheard_s
        if unheard_s is None:
            return "Redis has not answered yet"
        if unheard_s * 1e6 > self._config.leader_lease_us:
            return f"Redis has not answered for {unheard_s:.1f} s"
        return ""

    def describe(self) -> Iterable[Metric]:
        """Say nothing before the first scrape: to register is not to read Redis."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give all families."""
        reading = self._reader.read()
        leads = reading is not None and self._leads(reading)
        yield _gauge("stoker_redis_up", "1 while Redis answers this scheduler.", reading is not None)
        yield _gauge("stoker_leader", "1 for the scheduler that leads its queue.", leads)
        yield from self._instruments.tick.collect()
        yield from self._instruments.script.collect()
        yield from self._batches(model_of(reading.overview) if reading else "")
        if reading is not None and leads:
            yield from queue_families(reading, self._config)
            yield from worker_families(reading.workers)
            yield self._circuits(reading)

    def _leads(self, reading: Reading) -> bool:
        view, token = reading.overview, self._token()
        return bool(token) and view.leader == token and view.leader_until_us > view.now_us

    def _batches(self, model: str) -> Iterator[Metric]:
        """The batches of this scheduler, of the one model that its queue has."""
        own = self._instruments
        for instrument in (own.batch_requests, own.batch_tokens, own.fill, own.efficiency):
            for family in instrument.collect():
                family.samples = [
                    sample._replace(labels={**sample.labels, "model": model}) for sample in family.samples
                ]
                yield family

    def _circuits(self, reading: Reading) -> Metric:
        family = GaugeMetricFamily(
            "stoker_worker_circuit_open",
            "1 while a worker gets nothing but probes: it failed too often, or is slow beside its peers.",
            labels=("worker",),
        )
        for name in sorted({record.worker for record in reading.workers}):
            family.add_metric((name,), self._health.state(name) is not CircuitState.CLOSED)
        return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
