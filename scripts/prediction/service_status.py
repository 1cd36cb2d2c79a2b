"""How the prediction service stands: its clients, what they have used today, its models.

Trust: runs at the provider; reads names and counts.
"""

from __future__ import annotations

import contextlib
import json

from rich.console import Console
from rich.table import Table

from server.prediction.client_registry import ClientRegistry
from server.prediction.model_store import ModelStore
from server.prediction.service_directory import ServiceDirectory
from server.prediction.usage import Usage


def status_json(directory: ServiceDirectory) -> str:
    """Return everything as one JSON object."""
    clients, models = _clients(directory), _models(directory)
    return json.dumps({"clients": clients, "models": models}, indent=2)


def print_status(directory: ServiceDirectory, console: Console) -> None:
    """Print two tables, or what to do to have something in them."""
    clients, models = _clients(directory), _models(directory)
    if clients:
        table = Table("client", "fingerprint", "patients today", "public keys", box=None)
        for client in clients:
            used = f"{client['patients_today']} of {client['patients_per_day']}"
            table.add_row(str(client["name"]), str(client["fingerprint"]), used, str(client["public_keys"]))
        console.print(table)
    else:
        console.print("no clients yet; `cipherward service admit NAME.card.json` lets one in")
    if models:
        table = Table("model", "form", "owner", "digest", box=None)
        for model in models:
            table.add_row(model["name"], model["form"], model["owner"] or "-", model["digest"][:16])
        console.print(table)
    else:
        console.print("no models yet")


def _clients(directory: ServiceDirectory) -> list[dict[str, str | int]]:
    registry = ClientRegistry(directory.clients)
    with contextlib.closing(Usage(directory.usage)) as usage:
        return [
            {
                "name": client.name,
                "fingerprint": client.enrolment.fingerprint,
                "patients_today": usage.today(client.name),
                "patients_per_day": client.allowance.patients_per_day,
                "public_keys": len(registry.keys(client.name)),
            }
            for client in registry.clients()
        ]


def _models(directory: ServiceDirectory) -> list[dict[str, str]]:
    return [
        {
            "name": model.description.name,
            "form": model.description.form,
            "owner": model.description.owner,
            "digest": model.description.digest.hex(),
        }
        for model in ModelStore(directory.models).models()
    ]
