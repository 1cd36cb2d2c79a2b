"""Print an agreement so that a hospital's people can decide by it.

Trust: public; runs at hospitals and at the coordinator, who is one of their people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from clients.learning.epsilon import epsilon_of
from clients.run.code import code_digest
from protocol.agreement import Agreement
from protocol.data_terms import ColumnTerms, DataTerms
from protocol.enrolment import fingerprint, in_groups
from protocol.errors import ConfigurationError
from protocol.packing import RoundKind
from scripts.printable import printable
from scripts.simulation.summary import privacy_in_words

_HALF_DIGITS: Final = 32
_GROUPS: Final = {"training": "strategy", "cohort": "federation.cohort"}
_SHOWN_AS_TABLE: Final = ("data.columns", "data.label")

MEANINGS: Final = {
    "data.name": "the data set",
    "data.header": "the file's first line names its columns",
    "data.missing": "codes of missing values, beside the empty cell",
    "data.smallest_count": "fewest patients of all sites whose statistics are used",
    "data.folds": "parts of each site's patients",
    "data.fold": "the part that is held out to evaluate on",
    "model.kind": "the shared model",
    "model.hidden": "widths of its hidden layers",
    "model.activation": "what hidden units make of their sum",
    "model.personal": "what each site trains for itself and never sends",
    "strategy.rounds": "training rounds",
    "strategy.local_epochs": "passes over a site's patients per round",
    "strategy.batch_size": "patients per step",
    "strategy.learning_rate": "size of a step",
    "strategy.weight_decay": "penalty on large weights",
    "strategy.proximal": "pull towards the shared model (FedProx)",
    "strategy.clip": "largest change of a parameter in the first round",
    "strategy.seed": "public seed of initial model, hold-out and order",
    "strategy.optimiser.kind": "how sites apply the mean change",
    "strategy.optimiser.learning_rate": "step size on the mean change",
    "strategy.optimiser.momentum": "for fedavgm",
    "strategy.optimiser.beta_1": "for fedadam, fedyogi",
    "strategy.optimiser.beta_2": "for fedadam, fedyogi",
    "strategy.optimiser.tau": "for fedadagrad, fedadam, fedyogi",
    "crypto.value_bits": "exact bits wanted per value",
    "crypto.security_bits": "security wanted against known attacks on the encryption",
    "crypto.epoch_rounds": "rounds after which keys are replaced; 0 for none",
    "crypto.largest_seeded_cohort": "sites, at most, that expand each other's seeds",
    "federation.cohort.tolerated_colluders": "hospitals that may work with the provider and learn no other's update",
    "federation.cohort.smallest_cohort": "fewest hospitals in a sum",
    "privacy.smallest_cell": "fewest patients in a cell of a sum; smaller ones are left out",
    "privacy.smallest_records": "fewest patients of a site that takes part",
    "privacy.smallest_events": "fewest patients of either outcome at a site",
    "privacy.noise_multiplier": "noise in sums over one patient's influence; 0 for none",
    "privacy.clip_norm": "one patient's influence, with noise",
    "privacy.delta": "for which epsilon is told, with noise",
}
"""What each of the terms means to people, by the key that sets it."""


def print_agreement(agreement: Agreement, console: Console) -> None:
    """Print all of an agreement; its digest comes last, because that is what people compare."""
    console.print(roster_table(agreement), _columns_table(agreement.terms.data), _terms_table(agreement))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(agreement):
        facts.add_row(f"[bold]{name}", text)
    console.print(facts, highlight=False)


def roster_table(agreement: Agreement) -> Table:
    """Return the hospitals with the fingerprints that they were told when they enrolled."""
    table = _table("Hospitals", "", "name", "fingerprint")
    for position, card in enumerate(agreement.roster, start=1):
        table.add_row(str(position), card.name, fingerprint(card))
    return table


def digest_in_groups(agreement: Agreement) -> str:
    """Return the agreement's digest as people read it to each other, on two lines."""
    digits = agreement.digest.hex()
    return f"{in_groups(digits[:_HALF_DIGITS])}\n{in_groups(digits[_HALF_DIGITS:])}"


def _columns_table(terms: DataTerms) -> Table:
    table = _table("Patients' table", "column", "kind", "what it may hold", "missing")
    for column in terms.columns:
        table.add_row(*map(_text, (column.name, column.kind, _content(column), _in_words(column.missing))))
    label = terms.label
    if label.positive_above is None:
        content = f"0: {_in_words(label.negative)}; 1: {_in_words(label.positive)}"
    else:
        content = f"1 above {label.positive_above:g}, else 0"
    meaning = f"{content}; 1 means {label.meaning or label.name}"
    table.add_row(*map(_text, (label.name, "outcome", meaning, "-")))
    return table


def _content(column: ColumnTerms) -> str:
    if column.kind == "number":
        return f"{column.minimum:g} to {column.maximum:g}, about {column.centre:g} +- {column.scale:g}"
    if column.kind == "category":
        reference = f"; {column.reference} has no input" if column.reference else ""
        return _in_words(column.categories) + reference
    return "anything; it is not used"


def _terms_table(agreement: Agreement) -> Table:
    table = _table("Terms", "setting", "value", "what it is")
    shown = ""
    for key, value in _settings(asdict(agreement.terms), ""):
        if key.startswith(_SHOWN_AS_TABLE):
            continue
        group, _, name = key.rpartition(".")
        if group != shown:
            table.add_section()
            table.add_row(f"[bold]{group}")
            shown = group
        table.add_row(name, _text(_in_words(value)), MEANINGS[key])
    return table


def _settings(values: dict[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    """Yield every setting by the key that sets it."""
    for name, value in values.items():
        key = prefix + _GROUPS.get(name, name)
        if isinstance(value, dict):
            yield from _settings(value, f"{key}.")
        else:
            yield key, value


def _facts(agreement: Agreement) -> Iterator[tuple[str, str]]:
    parameters, terms = agreement.parameters, agreement.terms
    yield (
        "encryption",
        f"CKKS with N = {parameters.ring_degree} and a modulus of {parameters.modulus_bits} bits: exact sums of "
        f"{parameters.value_bits} bits per value, {parameters.security_bits} bits of security",
    )
    values = agreement.plan(RoundKind.TRAIN).values
    yield "an update", f"{values:,} values, {decimal(parameters.update_bytes(values))} per site and round"
    yield "noise", _noise(agreement) if terms.privacy.has_noise else "none: there is no differential privacy"
    yield "begins from", _start(agreement)
    is_ours = agreement.code_digest == code_digest()
    yield "code", agreement.code_digest + (" (installed here)" if is_ours else " (NOT the release installed here)")
    yield "secret", f"{agreement.secret_digest} (commits to the consortium's secret)"
    yield "digest", digest_in_groups(agreement)


def _start(agreement: Agreement) -> str:
    if not agreement.start:
        return "the public initial model"
    return f"{agreement.start} (commits to the model that the hospitals have)"


def _noise(agreement: Agreement) -> str:
    try:
        return privacy_in_words(epsilon_of(agreement.terms), agreement.terms.privacy.delta)
    except ConfigurationError as error:
        return f"promises nothing: {error}"


def _in_words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(text: str) -> Text:
    return Text(printable(text))  # and not read as rich's markup


def _table(title: str, *headings: str) -> Table:
    table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.title_style = "bold"
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"  # nothing is cut short that people decide by
    return table
