"""The commands `cipherward predict` and `cipherward open-scores`: patients in, scores out.

Trust: runs at the client, on patients' records; with a public key alone, at a device that cannot read what it gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigurationError, ProtocolError
from scripts.prediction.service_options import CaOption, ServiceOption, connected
from scripts.site.vault_option import VaultOption, opened_vault

if TYPE_CHECKING:
    from clients.data.patient_file import PatientFile
    from clients.prediction.service import PredictionService

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

OutputOption = Annotated[Path, typer.Option(help="Where to write the scores; must not be there yet.", dir_okay=False)]


def predict(
    *,
    model: Annotated[str, typer.Option(help="The model's name at the service.")],
    input_file: Annotated[
        Path, typer.Option("--input", help="Patients, CSV, with the model's columns.", exists=True, dir_okay=False)
    ],
    output: OutputOption,
    service: ServiceOption,
    vault: VaultOption,
    ca: CaOption = None,
    intercept: Annotated[
        float | None,
        typer.Option(
            help="Added to each logit of a model whose intercept is personal; your site's own one if not given."
        ),
    ] = None,
    canaries: Annotated[
        Path | None,
        typer.Option(
            help="Patients whose scores are known: CSV with the model's columns and `logit` in place of the outcome.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Encrypt under this public key; its holder opens the scores.", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Score patients with a model at a prediction service, which sees neither them nor their scores.

    The input is a table as for training; the outcome may be missing, and so may columns that the model does not use. A
    column `id` is carried over. The output has a line for each row: probability, logit, or what is wrong with the row.
    Rows are counted from 1, without the header and blank lines; what is wrong is told with its line in the file.

    Canaries travel among the patients, and if one of them gets another score than it has, no score is written.

    A device that has only a hospital's public key (`cipherward keys export`) writes encrypted scores, which the
    hospital reads with `cipherward open-scores`.

    - `cipherward predict --model heart --input new.csv --output scores.csv --service ps.example.org:8443 --ca ca.crt`
    - `cipherward predict --model heart --input new.csv --output scores.cws --service ps.example.org:8443 --ca ca.crt
      --public-key cleveland.cwk`
    """
    from rich.console import Console

    from clients.data.patient_file import read_known_patients, read_patients
    from clients.prediction import Canaries, EncryptedPredictor
    from scripts.prediction.score_output import check_output, patients_csv, write_private
    from scripts.progress import count_display

    check_output(output)
    if public_key is not None and (intercept is not None or canaries is not None):
        raise ConfigurationError("with --public-key scores cannot be read here: leave --intercept and --canaries out")
    opened = opened_vault(vault)
    with connected(opened, service, ca) as connection:
        data = connection.describe(model).data
        patients = read_patients(input_file, data)
        if public_key is not None:
            _request_scores(connection, model, public_key, patients, output)
            return
        known = None if canaries is None else read_known_patients(canaries, data)
        predictor = EncryptedPredictor(
            connection,
            model,
            vault=opened,
            intercept=intercept,
            canaries=None if known is None else Canaries(features=known[0], logits=known[1]),
        )
        with count_display(Console(), "patients") as told:
            logits = predictor.decision_function(patients.features[patients.usable], told=told)
    write_private(output, patients_csv(patients, logits))
    _sum_up(patients, output, "what is wrong with the others is in its last column")


def open_scores(
    *,
    input_file: Annotated[
        Path, typer.Option("--input", help="Encrypted scores, as a device wrote them.", exists=True, dir_okay=False)
    ],
    output: OutputOption,
    vault: VaultOption,
) -> None:
    """Read the scores that a device has had computed under this hospital's public key.

    The vault is the one from which the model was published; it has the key, and the bias that stayed at home. The
    output has a line for each row that the device has scored: its number in the device's table, probability and logit.

    Example: `cipherward open-scores --input scores.cws --output scores.csv --vault /srv/cipherward`
    """
    from clients.prediction.devices import opened_scores
    from clients.prediction.score_file import ScoreFile
    from scripts.prediction.score_output import check_output, rows_csv, write_private

    check_output(output)
    opened = opened_vault(vault)
    try:
        rows, logits = opened_scores(ScoreFile.from_bytes(input_file.read_bytes()), opened)
    except ProtocolError as error:
        raise ConfigurationError(
            f"{input_file} is no file of encrypted scores ({error}): ask the device anew"
        ) from None
    write_private(output, rows_csv(rows.tolist(), logits))
    typer.echo(f"{output} has the scores of {len(rows)} patients")


def _request_scores(
    connection: PredictionService, model: str, public_key: Path, patients: PatientFile, output: Path
) -> None:
    import numpy as np
    from rich.console import Console

    from clients.prediction.devices import scores_for
    from scripts.prediction.score_output import write_private
    from scripts.progress import count_display

    rows = np.array(patients.usable, dtype=np.int64)
    with count_display(Console(), "patients") as told:
        scores = scores_for(connection, model, public_key.read_bytes(), patients.features[rows], rows + 1, told=told)
    write_private(output, scores.to_bytes())
    for row, (complaint, line) in enumerate(zip(patients.complaints, patients.lines, strict=True), start=1):
        if complaint:
            typer.echo(f"row {row}, line {line}: {complaint}", err=True)
    _sum_up(patients, output, "what is wrong with the others is above")
    typer.echo("the key's holder reads them with `cipherward open-scores`")


def _sum_up(patients: PatientFile, output: Path, rest: str) -> None:
    scored, rows = len(patients.usable), len(patients.complaints)
    count = str(scored) if scored == rows else f"{scored} of {rows}"
    typer.echo(f"{output} has the scores of {count} patients" + ("" if scored == rows else f"; {rest}"))
