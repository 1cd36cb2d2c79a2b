"""Four real hospitals learn together, in process but with everything real: tables, keys, encryption, Flower's messages.

The plaintext twin is the measure: whatever happens to a run, the sites' models are the twin's, bit for bit.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save
from tap import Tap

from clients.run.files import RunFiles
from clients.run.membership import TABLE
from conf import compose
from protocol.envelope import Request
from protocol.errors import CohortError
from protocol.packing import RoundKind
from protocol.terms import OPTIMISERS
from scripts.simulation.twin import plaintext_models, run_learners, train_plain

CLEVELAND, HUNGARIAN, SWITZERLAND, VA = range(4)
HOSPITALS = ["cleveland", "hungarian", "switzerland", "va"]
ALL_SHARED = "model.personal=[]"
CHOLESTEROL = 4
"""Column of the table."""


@pytest.fixture
def heart(found):
    """Found the consortium of the four hospitals; the files are found as the product finds them, or that fails."""
    return lambda *overrides: found(
        compose(["experiment=heart_disease", "strategy.rounds=3", "strategy.local_epochs=1", *overrides])
    )


def events(federation, name):
    lines = (federation.directory / "provider" / "events.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == name]


def told_at(federation, position, name):
    """Return what a site told its own people."""
    lines = federation.vault(position).path("events.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == name]


def run_files(federation, position):
    (directory,) = federation.vault(position).path("runs").iterdir()
    return RunFiles(federation.vault(position), bytes.fromhex(directory.name))


def bias_of(federation, position):
    tensors = load_file(federation.vault(position).path("models/last.safetensors"))
    return float(tensors["output.bias"][0])


def assert_twins(federation, positions: Sequence[int] | None = None):
    """Compare all values, personal ones included, with the twin's; then the shared state of all sites."""
    positions = federation.everyone if positions is None else positions
    twins = plaintext_models(federation.directory)
    for position in positions:
        values = federation.values(position)
        assert np.isfinite(values).all()
        assert values.tobytes() == twins[HOSPITALS[position]].tobytes()
    assert len({run_files(federation, site).position().learner.shared_digest() for site in positions}) == 1


def rewrite(federation, position, change: Callable[[list[list[str]]], list[list[str]]]):
    """Change the rows of a site's table before the run."""
    path = federation.vault(position).path(TABLE)
    rows = change([line.split(",") for line in path.read_text().splitlines()])
    path.write_text("".join(",".join(cells) + "\n" for cells in rows))


def with_cell(rows, column, cell):
    return [[*cells[:column], cell, *cells[column + 1 :]] for cells in rows]


def numbers_kept_by(federation, position):
    """Yield each number in a site's models and metrics."""
    vault = federation.vault(position)
    for path in vault.path("models").iterdir():
        for tensor in load_file(path).values():
            yield from tensor.ravel().tolist()
    texts = [vault.read(name).decode() for name in ("metrics.jsonl", "result.json") if vault.has(name)]
    for text in texts:
        yield from numbers_in([json.loads(line) for line in text.splitlines()] if "\n{" in text else json.loads(text))


def numbers_in(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from numbers_in(branch)
    elif isinstance(tree, int | float):
        yield tree


@dataclass
class PersonalTap(Tap):
    """Keeps, beside every byte that passes, every personal value that a site has had meanwhile.

    Attributes:
        personal: Roster position -> personal values.
    """

    personal: dict[int, set[float]] = field(default_factory=dict)

    def look_into(self, site):
        for path in self.federation.vault(site).path("runs").glob("*/*.safetensors"):
            # the initial value is public: 0
            tensors = load(path.read_bytes())
            self.personal.setdefault(site, set()).update(tensors.get("personal", np.zeros(0)).tolist())
            self.personal[site].discard(0.0)


def forms_of(number):
    return [struct.pack(form, number) for form in ("<d", ">d", "<f", ">f")] + [repr(number).encode()]


@pytest.mark.parametrize("overrides", [[], [ALL_SHARED]], ids=["with personal intercepts", "all shared"])
def test_the_encrypted_run_ends_in_the_twin_s_models_bit_for_bit(run, heart, overrides):
    federation = heart(*overrides)

    run(federation)

    assert [entry["cohort"] for entry in events(federation, "round")] == [HOSPITALS] * 5
    (finished,) = events(federation, "finished")
    assert (finished["closed"], finished["states_identical"]) == (HOSPITALS, True)
    assert_twins(federation)
    biases = {bias_of(federation, site) for site in federation.everyone}
    assert len(biases) == (1 if overrides else 4)
    assert 0.0 not in biases
    learner = run_files(federation, VA).position().learner
    assert learner.standardisation.records == 689  # of 920; each site holds out one patient in four
    assert learner.federated.records == 231


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_every_optimiser_takes_all_sites_where_it_takes_the_twin(run, heart, kind):
    federation = heart(f"strategy={kind}", "strategy.rounds=3", "strategy.local_epochs=1")

    run(federation)

    assert_twins(federation)
    optimiser = run_files(federation, VA).position().learner.optimiser
    assert optimiser.steps == 3
    assert (len(optimiser.first) > 0, len(optimiser.second) > 0) == {
        "fedavg": (False, False),
        "fedavgm": (True, False),
        "fedadagrad": (False, True),
        "fedadam": (True, True),
        "fedyogi": (True, True),
    }[kind]


def test_personal_values_are_in_no_message(run, heart):
    federation = heart()
    taps = []

    def tap(grid):
        taps.append(PersonalTap(grid, federation))
        return taps[0]

    run(federation, wrap=tap)

    (wire,) = taps
    assert {site: len(values) for site, values in wire.personal.items()} == dict.fromkeys(federation.everyone, 3)
    values = set().union(*wire.personal.values())
    assert len(values) == 12  # three rounds at four sites, no two alike
    assert len(wire.passed) > 50
    assert not [value for value in values for form in forms_of(value) if any(form in data for data in wire.passed)]
    # it is the search that finds none: each site's last value is on its own disk
    for site in federation.everyone:
        own = [path.read_bytes() for path in federation.vault(site).path("runs").glob("*/position.safetensors")]
        assert {value for value in values if any(struct.pack("<d", value) in data for data in own)} == {
            bias_of(federation, site)
        }


def test_an_update_has_no_place_for_personal_values(run, heart, tmp_path):
    network = ["strategy.rounds=1", "model=mlp", "model.hidden=[100]"]
    shared = heart(*network, ALL_SHARED)
    personal = type(shared).found(
        tmp_path / "personal", compose(["experiment=heart_disease", *network, "model.personal=[hidden.0.weight]"])
    )
    plans = [federation.agreement.plan(RoundKind.TRAIN) for federation in (shared, personal)]

    for federation in (shared, personal):
        run(federation)
        assert_twins(federation)

    sizes = [events(federation, "round")[1]["up_bytes"] for federation in (shared, personal)]
    assert plans[0].values - plans[1].values == 20 * 100
    assert sizes[0] - sizes[1] >= 2000 * 4  # bytes per value


def test_a_round_without_a_site_leaves_that_site_s_personal_values_as_they_were(run, heart):
    federation = heart()
    seen = []

    def lose_ready_of_round_2(reply):
        if (reply.metadata.message_type, reply.metadata.src_node_id) != (str(Request.PREPARE), 100 + SWITZERLAND):
            return reply
        position = run_files(federation, SWITZERLAND).position()
        seen.append((position.round if position else 0, position.personal.tolist() if position else None))
        return None if seen[-1][0] == 2 else reply

    run(federation, lose_ready_of_round_2)

    others = [name for name in HOSPITALS if name != "switzerland"]
    assert [entry["cohort"] for entry in events(federation, "round")] == [
        HOSPITALS,
        HOSPITALS,
        others,
        *[HOSPITALS] * 2,
    ]
    assert_twins(federation)
    personal = dict(seen)
    assert personal[1] == [0.0]
    assert personal[2] == personal[3] != personal[1]
    assert personal[4] != personal[3]


def test_a_site_whose_state_was_changed_on_disk_is_named_and_the_others_go_on(run, heart):
    federation = heart()

    def tamper_after_upload_1(reply):
        if (reply.metadata.message_type, reply.metadata.src_node_id) == (str(Request.UPLOAD), 100 + HUNGARIAN):
            position = run_files(federation, HUNGARIAN).position()
            if position is not None and position.round == 1:
                (path,) = federation.vault(HUNGARIAN).path("runs").glob("*/position.safetensors")
                tensors = {name: tensor.copy() for name, tensor in load(path.read_bytes()).items()}
                tensors["model"][0] += 2.0**-30
                path.write_bytes(save(tensors))
        return reply

    run(federation, tamper_after_upload_1)

    others = [name for name in HOSPITALS if name != "hungarian"]
    (differing,) = events(federation, "states-differ")
    assert (differing["round"], differing["differing"], differing["agreeing"]) == (2, ["hungarian"], others)
    assert [entry["left_out"] for entry in events(federation, "round")] == [[], [], *[["hungarian"]] * 3]
    (finished,) = events(federation, "finished")
    assert (finished["closed"], finished["not_closed"]) == (others, ["hungarian"])
    assert_twins(federation, [CLEVELAND, SWITZERLAND, VA])
    assert told_at(federation, HUNGARIAN, "refused")[0]["error"] == "StateMismatchError"


@pytest.mark.parametrize("is_written", [False, True], ids=["before its position is written", "right after"])
def test_a_site_that_is_killed_at_a_sum_goes_on_with_its_personal_values(heart, monkeypatch, is_written):
    federation = heart()
    federation.open()
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()
    federation.sum_up()
    trained = RunFiles(federation.vault(VA), federation.run).pending(1).personal
    move_to = RunFiles.move_to
    delete = type(federation.vault(VA)).delete

    def killed(*_):
        raise KeyboardInterrupt

    if is_written:
        # the position is written between two deletions: of the counted tries, and of the contribution
        monkeypatch.setattr(
            type(federation.vault(VA)),
            "delete",
            lambda vault, name: killed() if name.endswith("pending.safetensors") else delete(vault, name),
        )
    else:
        monkeypatch.setattr(RunFiles, "move_to", killed)
    with pytest.raises(KeyboardInterrupt):
        federation.prepare(VA, 2)
    monkeypatch.setattr(RunFiles, "move_to", move_to)
    monkeypatch.setattr(type(federation.vault(VA)), "delete", delete)
    assert RunFiles(federation.vault(VA), federation.run).position().round == (2 if is_written else 1)

    federation.prepare(VA, 2)

    assert RunFiles(federation.vault(VA), federation.run).position().personal.tolist() == trained.tolist() != [0.0]
    federation.run_all()
    for site in federation.everyone:
        federation.close(site)
    agreement = federation.agreement
    twins = train_plain(agreement, run_learners(federation.directory, agreement), [[0, 1, 2, 3]] * 5)
    assert all(federation.values(site).tobytes() == twins[HOSPITALS[site]].tobytes() for site in federation.everyone)


def all_healthy(rows):
    return with_cell(rows, -1 + len(rows[0]), "0")


def ten_ill_patients(rows):
    return [cells for cells in rows if cells[-1] != "0"][:10]


def each_twice(rows):
    return [cells for cells in rows for _ in range(2)]


@pytest.mark.parametrize("change", [all_healthy, ten_ill_patients, each_twice])
def test_an_unusual_table_is_learnt_from_like_any_other(run, heart, change):
    federation = heart()
    rewrite(federation, SWITZERLAND, change)

    run(federation, reports=True)

    assert events(federation, "round")[-1]["cohort"] == HOSPITALS
    assert_twins(federation)
    result = json.loads(federation.vault(SWITZERLAND).read("result.json"))
    labels = {line[0] for line in federation.vault(SWITZERLAND).read("scores.csv").decode().splitlines()[1:]}
    assert (result["federated"]["auc"] is None) == (len(labels) == 1)
    (table,) = told_at(federation, SWITZERLAND, "table")
    assert (table["records"], table["repeated_records"] > 0) == {
        all_healthy: (123, False),
        ten_ill_patients: (10, False),
        each_twice: (246, True),
    }[change]
    assert b"</html>" in federation.vault(SWITZERLAND).read("report.html")
    assert not any(np.isnan(number) for site in federation.everyone for number in numbers_kept_by(federation, site))


def test_a_feature_that_nobody_measured_is_not_used(run, heart):
    federation = heart()
    for site in federation.everyone:
        rewrite(federation, site, lambda rows: with_cell(rows, CHOLESTEROL, "?"))

    run(federation, reports=True)

    assert_twins(federation)
    tensors = load_file(federation.vault(VA).path("models/last.safetensors"))
    names = [given.name for given in federation.agreement.terms.data.inputs]
    assert [names[at] for at in np.flatnonzero(tensors["output.weight"][0] == 0.0)] == ["chol"]
    assert [names[at] for at in np.flatnonzero(np.isinf(tensors["standardisation.deviation"]))] == ["chol"]
    assert all(federation.vault(site).has("report.html") for site in federation.everyone)
    assert not any(np.isnan(number) for site in federation.everyone for number in numbers_kept_by(federation, site))


def test_a_feature_that_one_site_never_measured_is_learnt_from_the_others(run, heart):
    federation = heart()
    read = [line.split(",") for line in federation.vault(SWITZERLAND).path(TABLE).read_text().splitlines()]
    assert {cells[CHOLESTEROL] for cells in read} == {"0"}  # as published: Swiss cholesterol is a 0 that means nothing

    run(federation)

    tensors = load_file(federation.vault(SWITZERLAND).path("models/last.safetensors"))
    assert tensors["output.weight"][0, CHOLESTEROL + 2] != 0  # three kinds of chest pain are three inputs
    assert 200 < tensors["standardisation.mean"][CHOLESTEROL + 2] < 280


def unknown_category(rows):
    return [*rows[:6], *with_cell(rows[6:7], 2, "7"), *rows[7:]]


def one_patient(rows):
    return rows[:1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unknown_category, f"{TABLE}, line 7, column 'cp': a category that the schema does not know"),
        (one_patient, f"{TABLE}: fewer than privacy.smallest_records = 10 patients"),
    ],
)
def test_a_table_that_cannot_be_used_leaves_its_site_out_and_its_people_know_why(run, heart, change, reason):
    federation = heart()
    table = federation.vault(HUNGARIAN).read(TABLE)
    rewrite(federation, HUNGARIAN, change)

    run(federation)
    federation.vault(HUNGARIAN).write(TABLE, table)  # the twin reads all tables

    others = [name for name in HOSPITALS if name != "hungarian"]
    assert [entry["cohort"] for entry in events(federation, "round")] == [others] * 5
    (finished,) = events(federation, "finished")
    assert (finished["closed"], finished["not_closed"]) == (others, ["hungarian"])
    assert_twins(federation, [CLEVELAND, SWITZERLAND, VA])
    assert told_at(federation, HUNGARIAN, "refused")[0]["reason"] == reason
    assert not federation.vault(HUNGARIAN).path("models").exists()
    assert not [path.name for path in federation.vault(HUNGARIAN).path("runs").rglob("*.secret")]


def test_a_run_that_diverges_fails_and_leaves_each_site_its_reason_and_finite_models(run, heart):
    federation = heart("strategy.learning_rate=1000", "strategy.rounds=20")

    with pytest.raises(CohortError):
        run(federation)

    assert events(federation, "finished") == []
    for site in federation.everyone:
        assert re.match(r"round \d+: .*diverged", told_at(federation, site, "refused")[0]["reason"])
        assert [path.name for path in federation.vault(site).path("models").iterdir()] == ["best.safetensors"]
        assert np.isfinite(federation.values(site, "best")).all()
        assert np.isfinite(run_files(federation, site).position().learner.model).all()
        assert not any(np.isnan(number) for number in numbers_kept_by(federation, site))
