"""Benchmark encrypted prediction through a real service on loopback: TLS, signatures, workers and all.

Trust: a benchmark: provider and clients on one machine.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from protocol.prediction.description import ModelDescription
from protocol.prediction.parameters import RECORD_RANGE
from scripts.benchmarks.service import LINEAR_MODEL, QUADRATIC_MODEL, BenchClient, BenchService
from scripts.prediction.known_answer import Records

_SEED: Final = 16
_SETTLE_SHARE: Final = 0.2
"""Of the load's time, after which memory is looked at first: workers have started and seen all models by then."""


def predict(
    *,
    patients: Annotated[int, typer.Option(help="Patients of a batch.", min=1, max=4096)] = 2000,
    inputs: Annotated[int, typer.Option(help="Inputs of both models.", min=1, max=256)] = 20,
    hidden: Annotated[int, typer.Option(help="Hidden units of the quadratic model.", min=1, max=256)] = 16,
    repeats: Annotated[int, typer.Option(help="Each figure is the median of so many.", min=1)] = 9,
    clients: Annotated[int, typer.Option(help="Clients that ask at the same time in the load test.", min=0)] = 0,
    seconds: Annotated[float, typer.Option(help="How long the load test lasts.", min=1)] = 60.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Time encrypted predictions and compare them with plaintext ones; with `--clients`, also under load.

    A batch's patients per second are those of the service: from sending encrypted records to having encrypted scores.
    All other times are a client's: encryption, request, decryption.

    - `cipherward bench predict --json predict.json`
    - `cipherward bench predict --clients 200 --seconds 60`
    """
    console = Console()
    console.print("starting a service on loopback")
    with BenchService(inputs=inputs, hidden=hidden) as service, service.client("clinic") as clinic:
        batch = _standardised(patients, inputs)
        linear = _Measurement.of(service, LINEAR_MODEL, clinic, batch, repeats)
        single = _Measurement.of(service, LINEAR_MODEL, clinic, batch[:1], 4 * repeats)
        quadratic = _Measurement.of(service, QUADRATIC_MODEL, clinic, batch, repeats)
        document: dict[str, Any] = {
            "patients": patients,
            "inputs": inputs,
            "hidden": hidden,
            "repeats": repeats,
            "batch_patients_per_second": patients / linear.request_seconds,
            "batch_seconds": linear.total_seconds,
            "single_median_ms": 1000 * single.total_seconds,
            "single_request_bytes": single.request_bytes,
            "request_bytes": linear.request_bytes,
            "response_bytes": linear.response_bytes,
            "max_logit_error": linear.error,
            "mlp_batch_seconds": quadratic.total_seconds,
            "mlp_request_bytes": quadratic.request_bytes,
            "mlp_response_bytes": quadratic.response_bytes,
            "mlp_max_logit_error": quadratic.error,
        }
        _print(console, document)
        if clients:
            document |= _load(service, clients, seconds, console)
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {json_file}")


class _Measurement:
    """Medians of asking for the same patients again and again; the first time does not count.

    Attributes:
        request_seconds: From sending encrypted records to having encrypted scores.
        total_seconds: With encryption and decryption.
        request_bytes: Of a query.
        response_bytes: Of an answer.
        error: Largest of a logit.
    """

    def __init__(self) -> None:
        self.request_seconds = self.total_seconds = self.error = 0.0
        self.request_bytes = self.response_bytes = 0

    @classmethod
    def of(cls, service: BenchService, model: str, client: BenchClient, records: Records, repeats: int) -> _Measurement:
        description, expected = service.describe(model), service.models[model].logits(records)
        measured = cls()
        requests, totals = [], []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            query = client.query(description, records)
            sent = time.perf_counter()
            answer = client.send(description, query)
            came = time.perf_counter()
            scores = client.read(description, query, answer)
            totals.append(time.perf_counter() - started)
            requests.append(came - sent)
            measured.error = max(measured.error, float(np.abs(scores - expected).max()))
            measured.request_bytes, measured.response_bytes = len(query.to_bytes(description)), len(answer)
        measured.request_seconds = statistics.median(requests[1:])
        measured.total_seconds = statistics.median(totals[1:])
        return measured


def _load(service: BenchService, count: int, seconds: float, console: Console) -> dict[str, Any]:
    """Let many clients ask for a patient of their own each, over and over, and check every answer."""
    description = service.describe(LINEAR_MODEL)
    tolerance = description.parameter_set.tolerance
    records = _standardised(count, description.inputs)
    expected = service.models[LINEAR_MODEL].logits(records)
    before = service.statuses()
    with contextlib.ExitStack() as stack:
        console.print(f"enrolling {count} clients")
        asking = [stack.enter_context(service.client(f"client-{number}")) for number in range(count)]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        console.print(f"load: {count} clients for {seconds:.0f} s")
        started = time.monotonic()
        end = started + seconds
        futures = [
            pool.submit(_ask_on, client, description, row, expected[number], until=end)
            for number, (client, row) in enumerate(zip(asking, records, strict=True))
        ]
        time.sleep(_SETTLE_SHARE * seconds)
        settled = service.memory_bytes()
        time.sleep(max(0.0, end - time.monotonic()))
        ended = service.memory_bytes()
        outcomes = [future.result() for future in futures]
        elapsed = time.monotonic() - started
    times = sorted(taken for taken_by_client, _ in outcomes for taken in taken_by_client)
    wrong = sum(bool(error > tolerance) for _, error in outcomes)
    statuses = {status: number - before.get(status, 0) for status, number in service.statuses().items()}
    result = {
        "load_clients": count,
        "load_seconds": elapsed,
        "load_answers": len(times),
        "load_answers_per_second": len(times) / elapsed,
        "load_median_seconds": statistics.median(times),
        "load_largest_seconds": times[-1],
        "load_statuses": statuses,
        "load_clients_with_wrong_scores": wrong,
        "load_memory_settled_bytes": settled,
        "load_memory_end_bytes": ended,
    }
    console.print(
        f"{len(times):,} answers, {result['load_answers_per_second']:.0f} per second; median "
        f"{result['load_median_seconds']:.2f} s, largest {times[-1]:.2f} s; statuses {statuses}; {wrong} clients with "
        f"a wrong score; the service's memory {settled / 1e6:.0f} MB after a fifth of the time, {ended / 1e6:.0f} MB "
        "at the end",
        highlight=False,
    )
    return result


def _ask_on(
    client: BenchClient, description: ModelDescription, record: Records, expected: float, *, until: float
) -> tuple[list[float], float]:
    """Ask for one patient again and again; return the times, and the largest error."""
    query = client.query(description, record[np.newaxis])
    times, error = [], 0.0
    while time.monotonic() < until:
        started = time.perf_counter()
        answer = client.send(description, query)
        times.append(time.perf_counter() - started)
        error = max(error, abs(float(client.read(description, query, answer)[0]) - expected))
    return times, error


def _standardised(count: int, inputs: int) -> Records:
    records = np.random.default_rng(_SEED).normal(scale=2.0, size=(count, inputs))
    return np.asarray(np.clip(records, -RECORD_RANGE, RECORD_RANGE))


def _print(console: Console, document: dict[str, Any]) -> None:
    table = Table(title=f"Encrypted prediction of {document['inputs']} inputs, medians of {document['repeats']}")
    table.add_column()
    table.add_column("logistic regression", justify="right")
    table.add_column(f"{document['inputs']}-{document['hidden']}-1, quadratic", justify="right")
    patients = f"{document['patients']:,} patients"
    whole = [f"{document[key]:.3f} s" for key in ("batch_seconds", "mlp_batch_seconds")]
    rows = [
        (f"{patients}, encrypt to read", *whole),
        ("in the service, patients/s", f"{document['batch_patients_per_second']:,.0f}", ""),
        ("one patient, encrypt to read", f"{document['single_median_ms']:.1f} ms", ""),
        ("query", f"{document['request_bytes'] / 1e3:,.0f} kB", f"{document['mlp_request_bytes'] / 1e3:,.0f} kB"),
        ("answer", f"{document['response_bytes'] / 1e3:,.0f} kB", f"{document['mlp_response_bytes'] / 1e3:,.0f} kB"),
        ("largest error of a logit", f"{document['max_logit_error']:.1e}", f"{document['mlp_max_logit_error']:.1e}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
