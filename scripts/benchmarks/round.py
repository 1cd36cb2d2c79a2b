"""Benchmark whole rounds of a real Flower simulation, for a model of a wanted size.

Trust: a benchmark, run by the simulation's observer.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from itertools import count
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import conf
from scripts.events import PROVIDER_EVENTS, read_events
from scripts.simulation.launcher import simulate


def hidden_widths(parameters: int, inputs: int) -> tuple[int, int]:
    """Return hidden widths of the squarest perceptron with so many parameters, or a few more where none has exactly.

    Two hidden layers of a and b units on d inputs have a (d + 1) + b (a + 1) + b + 1 parameters, which leaves b a whole
    number only for some a.

    Args:
        parameters: Weights and biases wanted.
        inputs: d.
    """
    for total in count(parameters):
        for first in range(int(total**0.5), 1, -1):
            second, rest = divmod(total - 1 - first * (inputs + 1), first + 2)
            if second >= first and not rest:
                return first, second
    raise AssertionError  # count() does not end


def round_(
    parameters: Annotated[int, typer.Option(help="Weights and biases of the model.", min=40)] = 1_663_370,
    sites: Annotated[int, typer.Option(help="Simulated sites.", min=3, max=128)] = 4,
    rounds: Annotated[int, typer.Option(help="Training rounds; the median round is shown.", min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Time whole rounds of an encrypted Flower simulation: one local epoch, two exchanges, the provider's sum.

    Example: `cipherward bench round --parameters 1663370 --sites 4`
    """
    console = Console()
    inputs = len(conf.compose([]).data.inputs)
    widths = hidden_widths(parameters, inputs)
    config = conf.compose(
        [
            "model=mlp",
            f"model.hidden=[{','.join(map(str, widths))}]",
            f"federation.sites={sites}",
            "federation.partition=iid",
            f"strategy.rounds={rounds}",
            "strategy.local_epochs=1",
            "strategy.batch_size=1024",
        ]
    )
    with tempfile.TemporaryDirectory(prefix="cipherward-bench-") as directory:
        simulate(config, Path(directory), console)
        events = read_events(Path(directory) / PROVIDER_EVENTS)
    parameters = sum(prod(shape) for shape in config.model.tensor_shapes(inputs).values())
    trained = [event for event in events if event.get("kind") == "train"]
    document: dict[str, Any] = {
        "parameters": parameters,
        "sites": sites,
        "rounds": rounds,
        "round_seconds": statistics.median(event["seconds"]["total"] for event in trained),
        "ready_seconds": statistics.median(event["seconds"]["ready"] for event in trained),
        "upload_seconds": statistics.median(event["seconds"]["upload"] for event in trained),
        "aggregate_seconds": statistics.median(event["seconds"]["aggregate"] for event in trained),
        "up_bytes_per_site": statistics.median(event["up_bytes"] for event in trained),
        "down_bytes_per_site": statistics.median(event["down_bytes"] for event in trained),
    }
    console.print(
        f"{parameters:,} parameters, {sites} sites: {document['round_seconds']:.2f} s per round "
        f"(each figure the median of {rounds}; {document['ready_seconds']:.2f} s until all are "
        f"ready, {document['upload_seconds']:.2f} s for the uploads, "
        f"{document['aggregate_seconds'] * 1000:.0f} ms of them the provider's sum); per site and round "
        f"{document['up_bytes_per_site'] / 1e6:.2f} MB up, {document['down_bytes_per_site'] / 1e6:.2f} MB down",
        highlight=False,
    )
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {json_file}")
