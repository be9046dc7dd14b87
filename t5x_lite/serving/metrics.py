"""What a server counts, for Prometheus. docs/serving.md lists the names."""

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def of(kind: type, name: str, text: str, labels: tuple[str, ...] = (), **arguments):
            return kind(f"t5x_lite_{name}", text, labels, registry=self.registry, **arguments)

        self.requests = of(Counter, "requests_total", "Requests", ("route", "status"))
        self.latency = of(Histogram, "request_seconds", "Time to answer", ("route",), buckets=_SECONDS)
        self.stages = of(Histogram, "stage_seconds", "Parts of it", ("route", "stage"), buckets=_SECONDS)
        self.batches = of(Histogram, "batch_size", "Requests that ran together", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
        self.queue_depth = of(Gauge, "queue_depth", "Requests that wait for a batch")
        self.rejected = of(Counter, "rejected_total", "Requests refused or given up", ("reason",))
        self.fallbacks = of(Counter, "fallbacks_total", "Lists of popular items, where nothing was known")
        self.short_lists = of(Counter, "short_lists_total", "Lists shorter than asked for")
        self.reloads = of(Counter, "reloads_total", "Tries to load another version", ("result",))
        self.ready = of(Gauge, "ready", "1 while requests are answered")
        self.compilations = of(Gauge, "compilations", "Programs compiled since the start")
        self.device_memory = of(Gauge, "device_memory_bytes", "In use, where the device says", ("device",))
        self.version = of(Gauge, "version", "1 for what is served", ("model_version", "catalogue_version"))
        ProcessCollector(registry=self.registry)  # memory of the process, where a CPU says nothing of its own

    def text(self) -> bytes:
        """In Prometheus' format."""
        for device in jax.local_devices():
            used = (device.memory_stats() or {}).get("bytes_in_use")
            if used is not None:
                self.device_memory.labels(str(device)).set(used)
        return generate_latest(self.registry)
