"""What Prometheus may read: queue, jobs, times, rows, batches, memory, requests."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """One service's figures, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.queued = Gauge("nextstep_jobs_queued", "Jobs waiting.", registry=registry)
        self.running = Gauge("nextstep_jobs_running", "Jobs being made.", registry=registry)
        self.jobs = Counter(
            "nextstep_jobs", "Jobs that ended.", ["task", "outcome"], registry=registry
        )
        self.refused = Counter(
            "nextstep_jobs_refused", "Jobs refused because the queue was full.", registry=registry
        )
        self.waited = Histogram(
            "nextstep_job_wait_seconds", "Accepted to started.", buckets=_SECONDS, registry=registry
        )
        self.made = Histogram(
            "nextstep_picture_seconds",
            "Started to finished, per picture.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rows = Counter(
            "nextstep_rows", "Rows of image tokens made, over all pictures.", registry=registry
        )
        self.batch = Histogram(
            "nextstep_batch_pictures",
            "Pictures made together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.requests = Counter(
            "nextstep_http_requests",
            "Answered requests.",
            ["method", "route", "status"],
            registry=registry,
        )
        memory = Gauge("nextstep_memory_bytes", "Resident memory.", registry=registry)
        memory.set_function(_resident)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


def _resident() -> float:
    """Bytes of memory this process holds; 0 where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
