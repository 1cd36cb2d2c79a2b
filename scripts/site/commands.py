"""The commands `cipherward site ...`: what a hospital's people do, decide and look up at their own vault.

Trust: runs at the hospital, on its vault.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigurationError
from scripts.site.vault_option import NewVaultOption, VaultOption, new_vault, opened_vault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clients.run.overview import RunOverview
    from clients.secrets.vault import Vault

# As in scripts.cli, commands import what they need when they run.
# ruff: noqa: PLC0415

site_commands = typer.Typer(
    help="What a hospital's people do, decide and look up at their own vault.",
    epilog="Start with: cipherward site enrol",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

RunOption = Annotated[str, typer.Option("--run", help="The run's id, or its beginning; needed if several are open.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@site_commands.command()
def enrol(
    *,
    name: Annotated[str, typer.Option(help="The hospital's name: lower-case letters, digits and hyphens.")],
    vault: NewVaultOption,
    card: Annotated[
        Path | None, typer.Option(help="Where to write the public card; NAME.card.json if not given.")
    ] = None,
    passphrase: Annotated[
        bool,
        typer.Option("--passphrase", help="Encrypt the identity; every start of the site then needs the passphrase."),
    ] = False,
) -> None:
    """Make this hospital's keys, and the public card to send to the coordinator.

    The keys stay in the vault, which only this machine's owner can read. A service gives the passphrase in a file of
    mode 600 that CIPHERWARD_PASSPHRASE_FILE names.

    - `cipherward site enrol --name cleveland --vault /srv/cipherward`
    - `cipherward site enrol --name cleveland --vault /srv/cipherward --passphrase`
    """
    import clients.secrets.enrolment
    from protocol.agreement import SiteId
    from scripts.site.passphrase import new_passphrase

    path = card or Path(f"{name}.card.json")
    if path.exists() or not os.access(path.absolute().parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written, or is there already: name another file with --card")
    made = clients.secrets.enrolment.enrol(new_vault(vault), SiteId(name), new_passphrase() if passphrase else None)
    path.write_bytes(made.to_bytes())
    typer.echo(f"""{name} is enrolled
fingerprint  {made.fingerprint}
vault        {vault}
card         {path}

Next:
1. Send the card to the consortium's coordinator, who is a hospital's person, and to the provider, who lets your
   node in.
2. When the coordinator calls you back, read them the fingerprint.
3. Put your patients' table into the vault as data.csv.
4. When the agreement and, by another way, the consortium's secret have come:
   cipherward agreement show agreement.json
   cipherward agreement pin agreement.json --secret consortium.secret --vault {vault}

A clinic or a device that only asks a prediction service sends the card to the service's provider, and goes on with
   cipherward keys create --vault {vault}""")


@site_commands.command()
def check(
    *,
    vault: VaultOption,
    provider: Annotated[str, typer.Option(help="The provider's HOST:PORT, to be reached and asked for its time.")] = "",
    ca: Annotated[
        Path | None,
        typer.Option(
            help="The authority of the provider's certificate, PEM; the machine's own ones if not given.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Check whether this site is ready for a run: keys, agreement, table, packages, disk, provider and clock.

    Prints a line per check, with what to do if it failed; then the exit code is 1.

    - `cipherward site check --vault /srv/cipherward`
    - `cipherward site check --vault /srv/cipherward --provider fl.example.org:443 --ca ca.crt`
    """
    from rich.console import Console
    from rich.table import Table

    from clients.node.reachability import check_provider
    from clients.node.readiness import findings, vault_checks
    from scripts.printable import printable
    from scripts.site.passphrase import unlocked_identity

    opened = opened_vault(vault)
    checks = vault_checks(opened, lambda: unlocked_identity(opened))
    if provider:
        checks["provider"] = lambda: check_provider(provider, ca)
    found = list(findings(checks))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        table.add_row(finding.name, "ok" if finding.is_ok else "NOT OK", printable(finding.text))
    Console(markup=False, highlight=False).print(table)
    if not all(finding.is_ok for finding in found):
        raise typer.Exit(1)


@site_commands.command()
def start(
    *,
    vault: VaultOption,
    provider: Annotated[str, typer.Option(help="The provider's HOST:PORT.")],
    ca: Annotated[
        Path,
        typer.Option(
            help="The authority of the provider's certificate, PEM.", exists=True, dir_okay=False, resolve_path=True
        ),
    ],
    log_json: Annotated[bool, typer.Option("--log-json", help="Say what happens in JSON, a line for each.")] = False,
) -> None:
    """Take part: connect to the provider and answer what it asks, until Ctrl-C or SIGTERM.

    Answers come from the code that is installed here; what code a run brings along is compared with the agreement and
    never run. It connects again whenever the line is lost, and may be ended and started again at any time: what it
    has promised is in the vault.

    Example: `cipherward site start --vault /srv/cipherward --provider fl.example.org:9092 --ca ca.crt`
    """
    from clients.node.readiness import check_table
    from clients.run.membership import Place, check_code
    from clients.secrets.identity_file import is_encrypted
    from scripts.event_lines import event_lines
    from scripts.site.node import Connection, start_site
    from scripts.site.passphrase import unlocked_identity

    opened, tell = opened_vault(vault), event_lines(is_json=log_json)
    place = Place.read(opened)
    check_code(place.agreement)
    identity = unlocked_identity(opened).to_secret() if is_encrypted(opened) else None
    try:
        check_table(opened)
    except ConfigurationError as error:  # it may be put there while the site waits for a run
        tell("trouble", f"the table is not ready: {error}")
    start_site(place, identity, Connection(provider=provider, ca=ca), tell)


@site_commands.command()
def share_model(
    recipient: Annotated[str, typer.Argument(help="Name of the hospital that lacks the model.")],
    *,
    vault: VaultOption,
    output: Annotated[Path | None, typer.Option(help="Where to write it; NAME.model.sealed if not given.")] = None,
) -> None:
    """Seal the model that the agreement starts from to a hospital that has just joined.

    Only that hospital can open the file, so it may be sent in any way.

    Example: `cipherward site share-model zurich --vault /srv/cipherward`
    """
    from clients.run.membership import Membership
    from clients.run.start import share_starting_model
    from scripts.site.passphrase import unlocked_identity

    opened, path = opened_vault(vault), output or Path(f"{recipient}.model.sealed")
    path.write_bytes(share_starting_model(Membership.load(opened, unlocked_identity(opened)), recipient))
    typer.echo(f"{path} is sealed to {recipient}, who opens it with `cipherward site take-model {path.name}`")


@site_commands.command()
def take_model(
    file: Annotated[Path, typer.Argument(help="What another hospital has sealed.", exists=True, dir_okay=False)],
    *,
    vault: VaultOption,
) -> None:
    """Take the model that the agreement starts from, as another hospital has sealed it to this one.

    Example: `cipherward site take-model zurich.model.sealed --vault /srv/cipherward`
    """
    from clients.run.membership import Membership
    from clients.run.start import take_starting_model
    from scripts.site.passphrase import unlocked_identity

    opened = opened_vault(vault)
    member = Membership.load(opened, unlocked_identity(opened))
    take_starting_model(member, file.read_bytes())
    typer.echo(f"{member.name} has the model that the agreement starts from; {file} is of no more use")


@site_commands.command()
def status(*, vault: VaultOption) -> None:
    """Show how each run stands at this site; needs no passphrase.

    Example: `cipherward site status --vault /srv/cipherward`
    """
    from rich.console import Console
    from rich.table import Table

    from clients.run.membership import Place
    from clients.run.overview import run_overviews

    place = Place.read(opened_vault(vault))
    table = Table("run", "stands before", "its update", "given up", "secrets", title=place.name)
    for run in run_overviews(place):
        table.add_row(
            run.run.hex()[:16],
            _stands_before(run),
            "-" if run.is_closed else "has left" if run.has_uploaded else "has not left",
            ", ".join(run.given_up) or "-",
            "on disk" if run.has_secrets else "deleted",
        )
    Console().print(table)


def _stands_before(run: RunOverview) -> str:
    if run.last_round is None:
        return "its end" if run.is_closed else f"round {run.next_round}, under another agreement"
    return "its end" if run.next_round > run.last_round else f"round {run.next_round} of {run.last_round}"


@site_commands.command()
def overrule(
    missing: Annotated[str, typer.Argument(help="Name of the site whose update does not come.")],
    *,
    vault: VaultOption,
    run: RunOption = "",
    yes: YesOption = False,
) -> None:
    """Give up the update of another site in the round that waits for it.

    Only for a site that is gone for good: one that comes back uploads, or signs itself that nothing has left. Every
    other site of the cohort has to decide the same; then the run can be resumed without the missing one.

    That cannot be undone. Before you agree, ask the missing hospital by telephone whether its update may have left
    (`cipherward site status` there). If it has, and the provider kept it back, the provider together with one other
    hospital learns it. Never give up a site because it gave up another one: decide the same as it did instead.

    Example: `cipherward site overrule hospital-3 --vault /srv/cipherward`
    """
    from clients.run.membership import Membership
    from clients.run.overview import run_overviews
    from clients.run.site import Site
    from scripts.site.passphrase import unlocked_identity

    opened = opened_vault(vault)
    member = Membership.load(opened, unlocked_identity(opened))
    open_here = {seen.run: seen for seen in run_overviews(member) if seen.has_secrets and seen.is_pinned}
    chosen = open_here[_one_run(opened, list(open_here), run)]
    number = chosen.next_round
    if chosen.given_up:
        typer.echo(f"{member.name} has given up {', '.join(chosen.given_up)} in this round; one more is rarely right")
    if not yes:
        typer.confirm(f"{member.name}: go on without {missing}'s update in round {number}, for good?", abort=True)
    Site(member).overrule(chosen.run, number, missing)
    typer.echo(f"{member.name} goes on without {missing}'s update in round {number}; it is in this vault's journal")


@site_commands.command()
def forget(*, vault: VaultOption, run: RunOption = "", yes: YesOption = False) -> None:
    """End a run at this site that will not be gone on with: delete its secrets, keep its models.

    Runs that end by themselves delete their secrets; this is for runs that failed or were given up. The site cannot
    take part in that run again. Needs no passphrase.

    Example: `cipherward site forget --vault /srv/cipherward`
    """
    from clients.run.overview import end_run, open_runs

    opened = opened_vault(vault)
    chosen = _one_run(opened, open_runs(opened), run)
    if not yes:
        typer.confirm(f"{opened.directory}: delete the secrets of run {chosen.hex()[:16]}?", abort=True)
    end_run(opened, chosen)
    typer.echo(f"the secrets of run {chosen.hex()[:16]} are deleted")


def _one_run(vault: Vault, open_runs: Sequence[bytes], beginning: str) -> bytes:
    """Return the one run that is meant."""
    fitting = [run for run in open_runs if run.hex().startswith(beginning)]
    if len(fitting) != 1:
        raise ConfigurationError(
            f"{vault.directory} has {len(fitting)} open runs that --run {beginning or 'ANY'} fits; see "
            "`cipherward site status`"
        )
    return fitting[0]
