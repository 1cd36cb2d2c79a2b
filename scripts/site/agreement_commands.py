"""The commands `cipherward agreement ...`: make what a consortium fixes, look at it, pin it.

Trust: `create` runs at the coordinator, a hospital's person, never at the provider: it draws the consortium's secret.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigurationError
from scripts.site.vault_option import VaultOption, opened_vault

if TYPE_CHECKING:
    from clients.secrets.secret import SecretBytes
    from protocol.terms import Terms

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

agreement_commands = typer.Typer(
    help="Make the agreement of a consortium, look at it, and pin it in a hospital's vault.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

AgreementFile = Annotated[Path, typer.Argument(help="The agreement.", exists=True, dir_okay=False)]


@agreement_commands.command()
def create(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CARD... [SETTING=VALUE]...",
            help="The hospitals' card files, then Hydra overrides, such as experiment=heart_disease.",
        ),
    ],
    *,
    output: Annotated[Path, typer.Option(help="Where to write the agreement.", dir_okay=False)] = Path(
        "agreement.json"
    ),
    secret: Annotated[
        Path, typer.Option(help="The consortium's secret: taken as it is, or made if not there.", dir_okay=False)
    ] = Path("consortium.secret"),
    start_from: Annotated[
        Path | None,
        typer.Option(
            help="A vault, whose last ended run's model the new runs start from; else from the public initial model.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Make an agreement of the hospitals' cards, and the consortium's secret.

    For the coordinator, a hospital's person and never the provider. Have each hospital read its fingerprint to you on
    the telephone before you send the agreement.

    - `cipherward agreement create cards/*.card.json experiment=heart_disease`
    - `cipherward agreement create cards/*.card.json data=breast_cancer strategy.rounds=30`
    - `cipherward agreement create cards/*.card.json experiment=heart_disease --start-from /srv/cipherward`
    """
    from rich.console import Console

    from clients.run.code import code_digest
    from clients.run.membership import commitment
    from clients.secrets.secret import SecretBytes
    from protocol.agreement import Agreement
    from protocol.schedule import KEY_BYTES
    from scripts.received_files import read_card
    from scripts.site.agreement_page import digest_in_groups, roster_table

    for path in (output, secret):
        if not os.access(path.absolute().parent, os.W_OK):
            raise ConfigurationError(f"{path}: nothing can be written into that directory")
    if output.exists():
        raise ConfigurationError(f"{output} is there already, and is not overwritten: name another file with --output")
    overrides = [argument for argument in arguments if _is_override(argument)]
    cards = [read_card(Path(argument)).card for argument in arguments if not _is_override(argument)]
    is_new = not secret.exists()
    consortium_secret = SecretBytes(os.urandom(KEY_BYTES)) if is_new else _read_secret(secret)
    agreement = Agreement(
        roster=tuple(sorted(cards, key=lambda card: card.name)),
        terms=_terms(overrides, sites=len(cards)),
        code_digest=code_digest(),
        secret_digest=commitment(consortium_secret),
    )
    if start_from is not None:
        agreement = replace(agreement, start=_starting_digest(start_from, agreement.terms, consortium_secret))
    if is_new:
        _write_secret(secret, consortium_secret)
    output.write_bytes(agreement.to_bytes())
    Console().print(roster_table(agreement))
    terms = agreement.terms
    typer.echo(f"""
data        {terms.data.name}, {terms.training.rounds} rounds of {terms.model.kind}
sums        of at least {terms.cohort.smallest_cohort} hospitals, {terms.cohort.tolerated_colluders} of which may \
work with the provider
agreement   {output}
secret      {secret}, {"made now" if is_new else "as it was"}
digest      {digest_in_groups(agreement).replace(chr(10), chr(10) + " " * 12)}

Next:
1. Call each hospital, and have it read its fingerprint to you: it must be the one above.
2. Send {output} to every hospital, and to the provider.
3. Bring {secret} to every hospital by another way than the agreement, and never to the provider.
4. Have the hospitals read the digest to each other before they pin.""")


@agreement_commands.command()
def show(file: AgreementFile) -> None:
    """Show what an agreement fixes: hospitals, patients' table, terms, encryption, digest.

    Example: `cipherward agreement show agreement.json`
    """
    from rich.console import Console

    from scripts.received_files import read_agreement
    from scripts.site.agreement_page import print_agreement

    print_agreement(read_agreement(file), Console())


@agreement_commands.command()
def pin(
    file: AgreementFile,
    *,
    vault: VaultOption,
    secret: Annotated[Path, typer.Option(help="The consortium's secret, as it came.", exists=True, dir_okay=False)],
    digest: Annotated[str, typer.Option(help="The digest that the other hospitals read out; else you are asked.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Give up the agreement that is pinned now.")] = False,
) -> None:
    """Pin an agreement: from then on this site takes part in runs under it, and in no others.

    Look at it first (`cipherward agreement show`), and compare its digest with the other hospitals on the telephone: it
    stands for all of it. Needs no passphrase.

    - `cipherward agreement pin agreement.json --secret consortium.secret --vault /srv/cipherward`
    - `cipherward agreement pin agreement.json --secret consortium.secret --vault /srv/cipherward --digest "03b1 ..."`
    """
    import clients.run.membership
    from clients.run.overview import open_runs
    from scripts.received_files import read_agreement
    from scripts.site.agreement_page import digest_in_groups

    opened, agreement, consortium_secret = opened_vault(vault), read_agreement(file), _read_secret(secret)
    clients.run.membership.check_pin(
        opened, agreement=agreement, consortium_secret=consortium_secret, may_replace=replace
    )
    typer.echo(f"the digest of {file} is\n{digest_in_groups(agreement)}")
    if not digest:
        typer.confirm("Did the other hospitals read you the same digest, and do you agree to all of it?", abort=True)
    elif "".join(digest.split()) != agreement.digest.hex():
        raise ConfigurationError(
            "that is not the digest you gave: pin nothing, and ask the coordinator on the telephone"
        )
    place = clients.run.membership.pin(
        opened, agreement=agreement, consortium_secret=consortium_secret, may_replace=replace
    )
    typer.echo(
        f"{place.name} has pinned it as site {place.site + 1} of {len(agreement.roster)}; the secret is in the vault "
        f"now, so delete {secret}"
    )
    left = len(open_runs(opened)) if replace else 0
    if left:
        typer.echo(f"{left} runs of before still have secrets in the vault: delete them with `cipherward site forget`")


def _is_override(argument: str) -> bool:
    return "=" in argument or argument.startswith("~")


def _terms(overrides: Sequence[str], *, sites: int) -> Terms:
    """Compose the terms; how an experiment would be simulated has no say in a real consortium."""
    import conf

    return conf.compose([*overrides, f"federation.sites={sites}", "federation.partition=iid"]).terms


def _starting_digest(vault: Path, terms: Terms, consortium_secret: SecretBytes) -> str:
    """Return what an agreement names the last model in a vault by; without P, it says nothing about the model."""
    from clients.run.start import last_model

    return last_model(opened_vault(vault), terms).model.digest(consortium_secret)


def _write_secret(path: Path, consortium_secret: SecretBytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(consortium_secret.reveal())


def _read_secret(path: Path) -> SecretBytes:
    from clients.secrets.secret import SecretBytes

    return SecretBytes(path.read_bytes())
