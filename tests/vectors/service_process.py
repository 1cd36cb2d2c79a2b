"""`cipherward serve` in a process of its own, on loopback.

It ends with its context, also when a test fails.
"""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psutil

from scripts.environment import project_root
from scripts.provider.directory import ProviderDirectory
from scripts.superlink import free_port

START_SECONDS = 60.0


@contextlib.contextmanager
def served(provider: ProviderDirectory) -> Iterator[tuple[httpx.Client, str, psutil.Popen]]:
    """Run `cipherward serve`; yields an HTTP client, the metrics' address, and the process."""
    port, metrics_port = free_port(), free_port()
    command = [
        sys.executable, "-c", "from scripts.cli import main; main()", "serve", "--directory", str(provider.path),
        "--port", str(port), "--metrics-port", str(metrics_port), "--workers", "1",
    ]  # fmt: skip
    trusted = ssl.create_default_context(cafile=str(provider.tls.authority))
    with (
        psutil.Popen(command, cwd=project_root(), stdout=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, trust_env=False) as http,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_there(http):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield http, f"http://127.0.0.1:{metrics_port}/metrics", process
        finally:
            process.terminate()


def is_there(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 204
    except httpx.ConnectError:
        return False
