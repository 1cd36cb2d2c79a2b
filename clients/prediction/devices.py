"""What a hospital's devices do with its public key, and how its key's holder reads the scores.

Trust: `scores_for` runs at a device, which holds no key that decrypts; `opened_scores` at the holder.
"""

from __future__ import annotations

import numpy as np

from clients.prediction.asking import Told, ask, patients_per_query
from clients.prediction.features import checked_features
from clients.prediction.key_store import KeyStore
from clients.prediction.keys import PublicEncryptor
from clients.prediction.published import Published
from clients.prediction.records import Values, read_logits
from clients.prediction.score_file import Rows, ScoredRows, ScoreFile
from clients.prediction.service import PredictionService
from clients.secrets.vault import Vault
from protocol.errors import ConfigurationError
from protocol.prediction.messages import Answer, PublicKey, QueryHeader, key_id
from protocol.prediction.wire import Header


def scores_for(
    service: PredictionService,
    model: str,
    public_key: bytes,
    records: Values,
    rows: Rows,
    *,
    told: Told | None = None,
) -> ScoreFile:
    """Have patients scored under a public key.

    Args:
        service: The service.
        model: Name of a model that is encrypted under the same key.
        public_key: The key holder's, as `cipherward keys export` wrote it.
        records: float64 (n, d), n > 0, in the columns' units; NaN where missing.
        rows: int64 (n,), what the file calls them.
        told: As of `ask`.

    Raises:
        ConfigurationError: The model is not encrypted under this key, or the records have another shape.
        ServiceError: The service refused, or cannot be reached.
        ProtocolError: The public key is none, or what came is no answer.
    """
    description = service.describe(model)
    identifier = key_id(public_key)
    if not description.is_encrypted:
        raise ConfigurationError(
            f"the model {model} lies at the service in plaintext, for clients with a key of their own: leave "
            "--public-key out, and give --vault the one that `cipherward keys create` made a key in"
        )
    if description.key != identifier.hex():
        raise ConfigurationError(
            f"the model {model} is not encrypted under this public key: get the newest file from whoever published it "
            "(`cipherward keys export`)"
        )
    parameters = description.parameter_set
    encryptor = PublicEncryptor(PublicKey.from_bytes(public_key, parameters), parameters)
    room = patients_per_query(description, is_seeded=False)
    starts = range(0, len(records), room)
    standard = description.standardised(checked_features(records, description))
    batches = [standard[start : start + room] for start in starts]
    exchanges = ask(service, description, batches, encryptor, identifier, told=told)
    answers = (
        ScoredRows(rows=rows[start : start + room], answer=exchange.answer)
        for start, exchange in zip(starts, exchanges, strict=True)
    )
    return ScoreFile(model=description.digest, answers=tuple(answers))


def opened_scores(file: ScoreFile, vault: Vault) -> tuple[Rows, Values]:
    """Decrypt a device's scores.

    Args:
        file: As the device wrote it.
        vault: The key holder's, from which the model was published.

    Returns:
        Row numbers, int64 (n,), and logits, float64 (n,).

    Raises:
        ConfigurationError: The vault has not published the model, or its key is deleted.
        ProtocolError: An answer is none, or to another model.
    """
    published = Published.read(vault, file.model)
    description = published.description
    stored, parameters = KeyStore(vault).find(bytes.fromhex(description.key))
    key = stored.secret_key(parameters)
    rows, logits = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for scored in file.answers:
        header = Header.of(scored.answer, Answer.MAGIC, "answer")
        asked = QueryHeader(
            model=description.digest,
            key=bytes.fromhex(description.key),
            patients=len(scored.rows),
            request=header.request,  # the device has compared it with its query's
            is_seeded=False,
        )
        answer = Answer.from_bytes(scored.answer, description, asked)
        rows.append(scored.rows)
        logits.append(read_logits(answer, description, key) + published.bias)
    return np.concatenate(rows), np.concatenate(logits)
