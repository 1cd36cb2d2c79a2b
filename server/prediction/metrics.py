"""Numbers for the provider's monitoring, in Prometheus' format, on a port of loopback that the world does not reach.

Trust: runs at the provider; counts and times, without names of clients.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from server.prediction.served_log import ServedRequest

_LOOPBACK = "127.0.0.1"


class Metrics:
    """Counters of one service.

    Args:
        waiting: Returns how many tasks wait for a worker.
        lost: Returns how many workers have been replaced.
    """

    def __init__(self, *, waiting: Callable[[], float], lost: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cipherward_requests", "Requests.", ("call", "status", "cause"), registry=self.registry
        )
        self._seconds = Histogram("cipherward_request_seconds", "Time to answer.", ("call",), registry=self.registry)
        self._bytes = Counter("cipherward_body_bytes", "Bytes of bodies.", ("direction",), registry=self.registry)
        self._patients = Counter("cipherward_patients", "Patients that were charged.", registry=self.registry)
        gauges = {
            "cipherward_waiting_tasks": ("Tasks that wait for a worker.", waiting),
            "cipherward_replaced_workers": ("Workers that ended in a task, or had to be ended.", lost),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(value)

    def count(self, served: ServedRequest) -> None:
        """Count a request."""
        self._requests.labels(served.call, served.status, served.cause).inc()
        self._seconds.labels(served.call).observe(served.seconds)
        self._bytes.labels("in").inc(served.bytes_in)
        self._bytes.labels("out").inc(served.bytes_out)
        self._patients.inc(served.patients)

    def listen(self, port: int) -> Callable[[], None]:
        """Listen on loopback, in a thread of its own; return what ends it."""
        server, thread = start_http_server(port, addr=_LOOPBACK, registry=self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end
