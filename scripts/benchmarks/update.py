"""Benchmark one update's way: from values to the wire, through the provider's sum, and back to values.

Measured against TenSEAL's `CKKSVector` as others use it (N=8192, primes [60, 40, 60], public key), and against masks
alone, in turns within one process, so that a drift of the machine's speed hits all alike.

Trust: a benchmark; it makes up values, sites and keys.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tenseal
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clients.data.table import Values
from clients.secrets.ckks import Encryptor
from clients.secrets.sealing import covered_residues
from clients.secrets.self_check import check_backend
from protocol.errors import ResidualError
from protocol.masks import mask_residues
from protocol.residues import ResidueSum, pack_residues, unpack_residues
from protocol.tags import tag_of, tag_vectors
from scripts.benchmarks.federation import STATE, BenchFederation

STEPS = ("encrypt_seconds", "add_seconds", "close_seconds", "decrypt_seconds")
SIZES = ("up_bytes_per_value", "down_bytes_per_value")


@dataclass
class Measurement:
    """What one scheme took: seconds of each repeat, and bytes per value."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    bytes_per_value: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure one step of one repeat."""
        started = time.perf_counter()
        yield
        self.seconds.setdefault(step, []).append(time.perf_counter() - started)

    def medians(self) -> dict[str, float]:
        """Return the median of each step, and the sizes."""
        return {step: statistics.median(times) for step, times in self.seconds.items()} | self.bytes_per_value


def measure(
    *, values: int, sites: int, value_bits: int, repeats: int, advance: Callable[[], None]
) -> tuple[BenchFederation, dict[str, Measurement]]:
    """Measure all schemes in turns.

    Args:
        values: Values per update.
        sites: Sites in the cohort.
        value_bits: Exact bits wanted per value.
        repeats: Repeats of each scheme.
        advance: Called after each repeat.
    """
    federation = BenchFederation(values, sites, value_bits)
    check_backend(federation.plan.parameters)
    update = np.random.default_rng(1).normal(scale=0.1, size=federation.parameters)
    packed = federation.pack(update)
    updates = [federation.seal(packed, site) for site in range(1, sites)]
    vectors = CkksVectors(sites)
    results = {name: Measurement() for name in ("ours", "ckksvector", "pad")}
    for _ in range(repeats):
        _measure_ours(federation, update, updates, results["ours"])
        vectors.measure(update, results["ckksvector"])
        _measure_pad(federation, update, results["pad"])
        advance()
    return federation, results


def _measure_ours(federation: BenchFederation, update: Values, others: list[bytes], result: Measurement) -> None:
    with result.timed("encrypt_seconds"):
        sealed = federation.seal(federation.pack(update), 0)
    arrived = [bytearray(data) for data in (sealed, *others)]  # as a transport leaves them: just written
    with result.timed("add_seconds"):
        total = federation.add(arrived)
    with result.timed("close_seconds"):
        aggregate = total.close().to_bytes()
    with result.timed("decrypt_seconds"):
        values = federation.unpack(federation.release(aggregate))
    if not np.array_equal(values, federation.unpack((1 + len(others)) * federation.pack(update))):
        raise ResidualError("sum of the benchmark", expected="exact", got="another")
    plan, parameters = federation.plan, federation.plan.parameters
    residues, seeds = Encryptor(federation.epoch_keys.ckks).encrypt(federation.pack(update))
    with result.timed("mask_seconds"):
        keys = federation.pair_keys[0].mask_keys(federation.terms, STATE)
        mask_residues(residues, keys, modulus=parameters.modulus, bits=parameters.modulus_bits)
    with result.timed("tag_seconds"):
        key = federation.epoch_keys.tag_vectors_key(federation.terms, STATE)
        covered = covered_residues(residues, seeds, federation.terms)
        tag_of(tag_vectors(key, parameters, len(covered)), covered, parameters)
    result.bytes_per_value = {
        "up_bytes_per_value": len(sealed) / plan.values,
        "down_bytes_per_value": len(aggregate) / plan.values,
    }


def _measure_pad(federation: BenchFederation, update: Values, result: Measurement) -> None:
    """Measure masks alone: what hides an update, but not the sum, from anyone who holds a site's secrets."""
    parameters, plan = federation.plan.parameters, federation.plan
    sites = len(federation.pair_keys)
    with result.timed("encrypt_seconds"):
        residues = (federation.pack(update) % parameters.modulus).astype(np.uint64)
        keys = federation.pair_keys[0].mask_keys(federation.terms, STATE)
        masked = mask_residues(residues, keys, modulus=parameters.modulus, bits=parameters.modulus_bits)
        data = pack_residues(masked, parameters.residue_bytes)
    with result.timed("add_seconds"):
        total = ResidueSum(parameters.modulus, parameters.modulus_bits, plan.shape)
        for _ in range(sites):
            total.add(unpack_residues(data, parameters.residue_bytes, parameters.modulus, plan.shape))
    with result.timed("close_seconds"):
        down = bytes(pack_residues(total.reduce(), parameters.residue_bytes))
    with result.timed("decrypt_seconds"):
        # a shared pad would be taken off again here
        final = unpack_residues(down, parameters.residue_bytes, parameters.modulus, plan.shape)
        mask_residues(
            final, dict.fromkeys(list(keys)[:1], False), modulus=parameters.modulus, bits=parameters.modulus_bits
        )
    result.bytes_per_value = dict.fromkeys(SIZES, len(data) / plan.values)


class CkksVectors:
    """TenSEAL's own way: one `CKKSVector` per 4096 values.

    Args:
        sites: Sites in the sum.
    """

    SLOTS = 4096

    def __init__(self, sites: int) -> None:
        self._sites = sites
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, 2 * self.SLOTS, coeff_mod_bit_sizes=[60, 40, 60], encryption_type=_PUBLIC_KEY
        )
        self._context.global_scale = 2.0**40
        self._public = self._context.copy()
        self._public.make_context_public()

    def measure(self, update: Values, result: Measurement) -> None:
        """Measure one repeat."""
        chunks = [update[start : start + self.SLOTS] for start in range(0, update.size, self.SLOTS)]
        with result.timed("encrypt_seconds"):
            sent = [tenseal.ckks_vector(self._public, chunk.tolist()).serialize() for chunk in chunks]
        with result.timed("add_seconds"):
            totals = []
            for data in sent:
                total = tenseal.ckks_vector_from(self._public, data)
                for _ in range(1, self._sites):
                    total += tenseal.ckks_vector_from(self._public, data)
                totals.append(total)
        with result.timed("close_seconds"):
            down = [total.serialize() for total in totals]
        with result.timed("decrypt_seconds"):
            for data in down:
                tenseal.ckks_vector_from(self._context, data).decrypt()
        result.bytes_per_value = {
            "up_bytes_per_value": sum(map(len, sent)) / update.size,
            "down_bytes_per_value": sum(map(len, down)) / update.size,
        }


_PUBLIC_KEY = tenseal.ENCRYPTION_TYPE.ASYMMETRIC


def update(
    values: Annotated[int, typer.Option(help="Values in one update, about.", min=1)] = 1 << 20,
    sites: Annotated[int, typer.Option(help="Sites in the cohort.", min=3, max=128)] = 4,
    value_bits: Annotated[
        int, typer.Option(help="Exact bits per value; picks the 24-, 32- or 40-bit prime.", min=8, max=32)
    ] = 21,
    repeats: Annotated[int, typer.Option(help="Repeats of each scheme, in turns; medians are shown.", min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Time an update's way against TenSEAL's CKKSVector: values to wire, the provider's sum, wire to values.

    Example: cipherward bench update --values 1048576 --sites 4 --json update.json
    """
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring in turns", total=repeats)
        federation, results = measure(
            values=values,
            sites=sites,
            value_bits=value_bits,
            repeats=repeats,
            advance=lambda: progress.advance(task),
        )
    medians = {name: result.medians() for name, result in results.items()}
    ours, theirs = medians["ours"], medians["ckksvector"]
    parameters = federation.plan.parameters
    document: dict[str, Any] = {
        "values": federation.plan.values,
        "sites": sites,
        "repeats": repeats,
        "crypto": {
            "ring_degree": parameters.ring_degree,
            "modulus_bits": parameters.modulus_bits,
            "guard_bits": parameters.guard_bits,
            "value_bits": parameters.value_bits,
            "security_bits": parameters.security_bits,
        },
        **medians,
        "ratio": {key: theirs[key] / ours[key] for key in (*STEPS, *SIZES)},
    }
    console.print(_table(medians, document["ratio"]))
    console.print(
        f"{federation.plan.values:,} values, {sites} sites, N={parameters.ring_degree}, {parameters.modulus_bits}-bit "
        f"prime, {parameters.value_bits} exact bits.\nOf values-to-wire, masks take "
        f"{ours['mask_seconds'] / ours['encrypt_seconds']:.0%} and tags "
        f"{ours['tag_seconds'] / ours['encrypt_seconds']:.0%}."
    )
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {json_file}")


def _table(medians: dict[str, dict[str, float]], ratio: dict[str, float]) -> Table:
    table = Table(title="One update, medians")
    for heading in ("", "Cipherward", "CKKSVector", "ratio", "masks alone"):
        table.add_column(heading, justify="left" if not heading else "right")
    labels = {
        "encrypt_seconds": "values to wire",
        "add_seconds": "provider: parse, check, add",
        "close_seconds": "provider: write the sum",
        "decrypt_seconds": "wire to values",
        "up_bytes_per_value": "bytes per value up",
        "down_bytes_per_value": "bytes per value down",
    }
    for key, label in labels.items():
        cells = [_cell(key, medians[name][key]) for name in ("ours", "ckksvector", "pad")]
        table.add_row(label, cells[0], cells[1], f"{ratio[key]:.1f}x", cells[2])
    return table


def _cell(key: str, value: float) -> str:
    return f"{value * 1000:,.1f} ms" if key.endswith("_seconds") else f"{value:.2f}"
