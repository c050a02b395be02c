"""``/metrics``: the queue and the work, in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from autotune.web.service import Service


class _Ours(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Read everything anew: nothing is counted twice."""
        service, runner = self._service, self._service.runner
        jobs = GaugeMetricFamily("autotune_jobs", "Jobs by state.", labels=["state"])
        for state, number in service.jobs.counts().items():
            jobs.add_metric([state.value], number)
        yield jobs
        trials = CounterMetricFamily(
            "autotune_trials",
            "Trials that jobs made since the service started.",
            labels=["outcome"],
        )
        for outcome, number in sorted(runner.trials.items()):
            trials.add_metric([outcome], number)
        yield trials
        yield CounterMetricFamily(
            "autotune_boots", "Servers booted by jobs since the service started.", runner.boots
        )
        yield GaugeMetricFamily("autotune_streams", "Open streams.", service.streams)
        yield GaugeMetricFamily("autotune_gpus", "GPUs of this machine.", len(service.gpus))
        yield GaugeMetricFamily(
            "autotune_queue_well", "1 while the queue is run and can be stored.", runner.is_well()
        )


def metrics(service: Service) -> bytes:
    """Write the figures."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Ours(service))
    return generate_latest(registry)
