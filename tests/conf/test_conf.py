from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path

import hydra
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conf
from clients.simulation import check_hospitals, simulated_site_names, site_tables
from conf.composition import MAX_VALUE_CHARACTERS, MAX_YAML_CHARACTERS, from_run_config
from conf.schema import DataConfig, FederationConfig, SourceConfig
from protocol.data_terms import DataTerms, LabelTerms
from protocol.errors import ConfigurationError
from protocol.parameters import advise
from protocol.privacy_terms import PrivacyTerms
from protocol.terms import OPTIMISERS, CohortTerms, CryptoTerms, ModelTerms, Terms, TrainingTerms

DEFAULT = conf.compose([])
HEART_DISEASE = conf.compose(["experiment=heart_disease"])
HOSPITALS = ["cleveland", "hungarian", "switzerland", "va"]
EXPERIMENTS = sorted(path.stem for path in (conf.CONFIG_DIRECTORY / "experiment").glob("*.yaml"))
PROJECT = Path(conf.__file__).parents[1] / "pyproject.toml"


def flattened(table, prefix=""):
    flat = {}
    for key, value in table.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def test_the_default_experiment_is_that_of_the_dataclasses():
    assert DEFAULT.strategy == TrainingTerms()
    assert DEFAULT.model == ModelTerms()
    assert DEFAULT.crypto == CryptoTerms()
    assert replace(DEFAULT.privacy, smallest_events=5) == PrivacyTerms()
    assert DEFAULT.federation == FederationConfig()
    assert (DEFAULT.data.name, len(DEFAULT.data.inputs)) == ("breast_cancer", 30)


def test_the_flower_defaults_equal_the_composed_default():
    run_config = flattened(tomllib.loads(PROJECT.read_text())["tool"]["flwr"]["app"]["config"])

    assert conf.from_run_config(run_config) == DEFAULT


def test_the_terms_are_the_part_that_sites_pin():
    assert DEFAULT.terms == Terms(
        data=DEFAULT.data.terms,
        model=DEFAULT.model,
        training=DEFAULT.strategy,
        crypto=DEFAULT.crypto,
        cohort=DEFAULT.federation.cohort,
        privacy=DEFAULT.privacy,
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_to_one_that_can_be_dealt_and_encrypted(name):
    config = conf.compose([f"experiment={name}"])
    federation = config.federation

    tables = check_hospitals(config)

    assert (config == DEFAULT) == (name == "breast_cancer")
    assert len(tables) == federation.sites
    assert advise(sites=federation.sites, value_bits=config.crypto.value_bits, values=1000)


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (path.parent.name, path.stem)
        for path in sorted(conf.CONFIG_DIRECTORY.glob("*/*.yaml"))
        if path.parent.name != "experiment"
    ],
)
def test_every_option_composes(group, option):
    assert conf.from_yaml(conf.to_yaml(conf.compose([f"{group}={option}"])))


def test_only_the_public_data_of_the_default_experiment_lower_a_floor():
    lowered = replace(PrivacyTerms(), smallest_events=1)

    assert DEFAULT.privacy == lowered
    assert conf.compose(["privacy.smallest_events=5"]).privacy == PrivacyTerms()
    assert conf.compose(["data=heart_disease"]).privacy == PrivacyTerms()


def test_noise_is_an_option_that_changes_nothing_else():
    noisy = conf.compose(["privacy=noise"])

    assert noisy.privacy == replace(DEFAULT.privacy, noise_multiplier=10.0)
    assert replace(noisy, privacy=DEFAULT.privacy) == DEFAULT


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_each_optimiser_has_a_strategy_of_its_name(kind):
    strategy = conf.compose([f"strategy={kind}"]).strategy

    assert strategy.optimiser.kind == kind
    assert replace(strategy, optimiser=DEFAULT.strategy.optimiser) == DEFAULT.strategy


def test_heart_disease_is_four_hospitals_with_their_own_patients_and_intercepts():
    assert HEART_DISEASE.privacy == PrivacyTerms()
    assert HEART_DISEASE.data == conf.compose(["data=heart_disease"]).data
    assert [source.site for source in HEART_DISEASE.data.sources] == HOSPITALS
    assert simulated_site_names(HEART_DISEASE) == HOSPITALS
    assert (HEART_DISEASE.federation.sites, HEART_DISEASE.federation.partition) == (4, "natural")
    assert HEART_DISEASE.model == ModelTerms(personal=("output.bias",))
    assert (HEART_DISEASE.data.label.negative, HEART_DISEASE.data.label.positive) == (("0",), ("1", "2", "3", "4"))
    assert all(len(source.sha256) == 64 and source.url for source in HEART_DISEASE.data.sources)


def test_the_patients_of_all_four_hospitals_can_also_be_dealt_out_anew():
    dealt = conf.compose(["experiment=heart_disease", "federation.partition=iid", "federation.sites=6"])

    assert simulated_site_names(dealt) == [f"hospital-{number}" for number in range(1, 7)]
    assert sum(len(file.rows) for file in site_tables(dealt).values()) == 920


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["experiment=heart_disease", "federation.sites=3"], "sites = 3, but data 'heart_disease' has 4 hospitals"),
        (["experiment=heart_disease", "federation.sites=5"], "sites = 5, but data 'heart_disease' has 4 hospitals"),
        (["federation.partition=natural"], "sites = 5, but data 'breast_cancer' has 0 hospitals"),
        (["experiment=heart_disease", "data=breast_cancer"], "sites = 4, but data 'breast_cancer' has 0 hospitals"),
    ],
)
def test_natural_sites_are_as_many_as_the_data_has_hospitals(overrides, complaint):
    with pytest.raises(ConfigurationError, match=f"federation.{complaint} of its own"):
        conf.compose(overrides)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"file": "/etc/passwd"}, r"data\.sources\[here\]\.file is not a path below the data directory"),
        ({"file": "../table.csv"}, r"data\.sources\[here\]\.file"),
        ({"file": "a/../../table.csv"}, r"data\.sources\[here\]\.file"),
        ({"file": ""}, r"data\.sources\[here\]\.file"),
        ({"file": "."}, r"data\.sources\[here\]\.file"),
        ({"file": ".."}, r"data\.sources\[here\]\.file"),
        ({"url": "http://example.org/table.csv"}, r"data\.sources\[here\]\.url does not begin with https://"),
        ({"url": "file:///etc/passwd"}, r"data\.sources\[here\]\.url"),
        ({"sha256": "ab"}, r"data\.sources\[here\]\.sha256 is not 64 lower-case hex digits"),
        ({"sha256": "AB" * 32}, r"data\.sources\[here\]\.sha256"),
        ({"sha256": "zz" * 32}, r"data\.sources\[here\]\.sha256"),
    ],
)
def test_a_source_is_below_the_data_directory_published_safely_and_has_a_digest(changes, complaint):
    SourceConfig(site="here", file="a/table.csv", url="https://example.org/table.csv", sha256="ab" * 32)
    with pytest.raises(ConfigurationError, match=complaint):
        SourceConfig(**({"site": "here", "file": "a/table.csv"} | changes))


def test_two_sources_of_one_site_are_refused():
    with pytest.raises(ConfigurationError, match=r"data\.sources names a site twice"):
        replace(HEART_DISEASE.data, sources=HEART_DISEASE.data.sources[:1] * 2)


def test_where_the_files_are_is_no_part_of_what_sites_pin():
    elsewhere = replace(HEART_DISEASE, data=replace(HEART_DISEASE.data, dir="/srv/registers/heart"))

    assert {field.name for field in fields(DataConfig)} - {field.name for field in fields(DataTerms)} == {
        "sources",
        "dir",
    }
    assert type(elsewhere.terms.data) is DataTerms
    assert elsewhere != HEART_DISEASE
    assert elsewhere.terms == HEART_DISEASE.terms
    assert not {"registers", "processed", "https"} & set(re.findall(r"\w+", repr(asdict(elsewhere.terms))))


def test_the_whole_heart_disease_experiment_goes_through_a_run_config():
    config = conf.compose(["experiment=heart_disease", "strategy=fedyogi", "data.dir=/srv/registers", "data.fold=3"])

    assert conf.from_yaml(conf.to_yaml(config)) == config
    assert conf.from_run_config({"hydra": conf.to_yaml(config)}) == config
    assert conf.from_run_config({"experiment": "heart_disease"}) == HEART_DISEASE


def test_options_change_what_they_say():
    config = conf.compose(["model=mlp", "strategy=fedprox", "crypto=precise", "experiment=breast_cancer_iid"])

    assert config.model == ModelTerms(kind="mlp", hidden=(16,))
    assert config.strategy == TrainingTerms(proximal=0.1)
    assert config.crypto.value_bits == 29
    assert config.federation.partition == "iid"


def test_a_model_for_encrypted_patients_is_an_mlp_with_the_quadratic_activation():
    config = conf.compose(["experiment=heart_disease_mlp"])

    assert config == replace(
        HEART_DISEASE,
        model=ModelTerms(kind="mlp", hidden=(16,), activation="quadratic", personal=("output.bias",)),
    )
    with pytest.raises(ConfigurationError, match="takes one hidden layer"):
        conf.compose(["model=mlp_quadratic", "model.hidden=[16,8]"])


def test_an_override_wins_over_its_experiment():
    assert conf.compose(["experiment=breast_cancer_skewed", "federation.alpha=0.3"]).federation.alpha == 0.3


def test_overrides_reach_nested_and_frozen_values():
    config = conf.compose(
        [
            "federation.cohort.smallest_cohort=4",
            "model=mlp",
            "model.hidden=[8,4]",
            "data.columns=[{name: mean radius, centre: 14, scale: 3}]",
        ]
    )

    assert config.federation.cohort == CohortTerms(smallest_cohort=4)
    assert config.model.hidden == (8, 4)
    assert [(column.name, column.centre) for column in config.data.columns] == [("mean radius", 14.0)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.roundz=3", "strategy.roundz"),
        ("colour=red", "colour"),
        ("strategy=magic", "strategy/magic.*fedavg; .*fedprox"),
        ("experiment=magic", "experiment/magic.*breast_cancer_iid"),
        ("strategy.rounds=many", "'many'.*strategy.rounds"),
        ("strategy.rounds=0", "strategy.rounds = 0"),
        ("strategy.rounds=[1", "strategy.rounds="),
        ("strategy", "'strategy'"),
        ("data=null", "override"),
        ("~data", "data.name"),
        ("data.columns=[{name: q, centrum: 1}]", "centrum"),
        ("model.hidden=[3]", "model.hidden"),
        ("federation.sites=2", "federation.sites = 2 is below federation.cohort.smallest_cohort = 3"),
        ("federation.partition=sorted", "federation.partition = 'sorted'"),
        ("data.columns=[{name: q, kind: date}]", r"data\.columns\[q\]\.kind = 'date'"),
        ("data.sources=[{site: q, file: ../q}]", r"data\.sources\[q\]\.file"),
        ("model.personal=[bias]", r"model\.personal = 'bias'"),
        ("strategy.optimiser.kind=sgd", r"strategy\.optimiser\.kind = 'sgd'"),
        ("strategy.optimiser.lr=1", r"strategy\.optimiser\.lr"),
        ("data.folds=1", r"data\.folds = 1"),
        ("federation.client_cpus=0", "federation.client_cpus"),
        ("federation.alpha=nan", "federation.alpha"),
        ("privacy.noise=1", "privacy.noise"),
        ("privacy.smallest_cell=0", "privacy.smallest_cell = 0"),
        ("federation.upload_seconds=0", "federation.upload_seconds"),
        ("data.label.name=${oc.env:HOME}", "data.label.name: interpolations are refused"),
        ("data.columns=[{name: '${oc.env:HOME}'}]", "data.columns.name: interpolations are refused"),
    ],
)
def test_a_wrong_override_is_refused_on_one_line_by_key(override, message):
    with pytest.raises(ConfigurationError, match=message) as refusal:
        conf.compose([override])

    assert "\n" not in str(refusal.value)
    assert str(conf.CONFIG_DIRECTORY) not in str(refusal.value)


names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1)


@given(
    learning_rate=st.floats(1e-9, 1e3),
    clip=st.floats(2.0**-20, 2.0**20),
    seed=st.integers(0, 2**32 - 1),
    label=names.filter(lambda name: "${" not in name and name != "???"),
)
@settings(max_examples=25, deadline=None)
def test_yaml_gives_back_an_equal_experiment(learning_rate, clip, seed, label):
    config = replace(
        DEFAULT,
        strategy=TrainingTerms(learning_rate=learning_rate, clip=clip, seed=seed),
        data=replace(DEFAULT.data, label=LabelTerms(name=label)),
    )

    assert conf.from_yaml(conf.to_yaml(config)) == config


@pytest.mark.parametrize("label", ["a\x85b", "${oc.env:HOME}", "${", "???"])
def test_a_name_that_yaml_would_change_is_refused_when_it_is_written(label):
    with pytest.raises(ConfigurationError):
        conf.to_yaml(replace(DEFAULT, data=replace(DEFAULT.data, label=LabelTerms(name=label))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.name"),
        ("[1]", "not a YAML mapping"),
        ("a: [", "not YAML"),
        (conf.to_yaml(DEFAULT) + "colour: red\n", "colour"),
        (conf.to_yaml(DEFAULT) + "strategy: {rounds: 3}\n", "duplicate key strategy"),
        (conf.to_yaml(DEFAULT).replace("  rounds:", "  roundz:"), "strategy.roundz"),
        (conf.to_yaml(DEFAULT).replace("rounds: 20", "rounds: null"), "strategy.rounds"),
        (conf.to_yaml(DEFAULT).replace("rounds: 20", "rounds: -1"), "strategy.rounds = -1"),
        (conf.to_yaml(DEFAULT).replace("rounds: 20", "rounds: ${oc.env:HOME}"), "strategy.rounds: interpolations"),
    ],
)
def test_wrong_yaml_is_refused_by_key(text, message):
    with pytest.raises(ConfigurationError, match=message):
        conf.from_yaml(text)


def test_a_run_config_is_read_as_overrides():
    config = conf.from_run_config(
        {"hydra": "", "data": "", "model": "mlp", "strategy.learning_rate": 1e-5, "federation.verify": False}
    )

    assert config == replace(
        DEFAULT,
        model=ModelTerms(kind="mlp", hidden=(16,)),
        strategy=TrainingTerms(learning_rate=1e-5),
        federation=FederationConfig(verify=False),
    )


def test_a_run_config_gives_back_its_experiment_and_names_its_terms():
    run_config = conf.run_config(HEART_DISEASE)

    assert set(run_config) == {"hydra", "terms"}
    assert run_config["terms"] == HEART_DISEASE.terms.digest
    assert conf.from_run_config({**run_config, "run": "2026-01-31_12-00-00"}) == HEART_DISEASE
    assert conf.from_run_config({"run": "2026-01-31_12-00-00", "terms": "00"}) == DEFAULT


def test_a_whole_configuration_in_the_run_config_counts_alone():
    config = replace(DEFAULT, strategy=TrainingTerms(rounds=3))

    assert conf.from_run_config({"hydra": conf.to_yaml(config), "strategy.rounds": 7, "model": "mlp"}) == config


@pytest.mark.parametrize(
    ("run_config", "message"),
    [
        ({"hydra.run.dir": "elsewhere"}, "hydra.run.dir"),
        ({"+strategy.rounds": 3}, "strategy.rounds"),
        ({"colour": "red"}, "colour"),
        ({"data": "../../data/breast_cancer"}, "data names no file in conf/data"),
        ({"strategy.roundz": 3}, "strategy.roundz"),
        ({"data.label.name": "${oc.env:HOME}"}, "interpolations"),
    ],
)
def test_a_run_config_reaches_nothing_but_the_experiment(run_config, message):
    with pytest.raises(ConfigurationError, match=message):
        conf.from_run_config(run_config)


@pytest.mark.parametrize(
    ("run_config", "message"),
    [
        ({"hydra": "a: " + "x" * MAX_YAML_CHARACTERS}, "longer than"),
        ({"model.hidden": "[" + "1," * MAX_VALUE_CHARACTERS + "1]"}, "longer than"),
        ({"hydra": "a: &a [1]\nb: [*a, *a]\n"}, "alias"),
    ],
)
def test_a_run_config_that_would_take_long_to_read_is_refused_unread(run_config, message):
    with pytest.raises(ConfigurationError, match=message):
        from_run_config(run_config)


def test_what_a_hydra_command_composes_becomes_the_same_experiment():
    conf.register()
    conf.register()
    with hydra.initialize_config_dir(str(conf.CONFIG_DIRECTORY), version_base="1.3"):
        composed = hydra.compose("config", overrides=["strategy.rounds=3"], return_hydra_config=False)

    assert conf.from_hydra(composed) == conf.compose(["strategy.rounds=3"])


def test_runs_are_kept_apart_by_time():
    conf.register()
    with hydra.initialize_config_dir(str(conf.CONFIG_DIRECTORY), version_base="1.3"):
        settings_of_hydra = hydra.compose("config", return_hydra_config=True).hydra

    assert settings_of_hydra.run.dir.startswith("runs/20")
    assert settings_of_hydra.sweep.dir.startswith("multirun/20")
    assert settings_of_hydra.job.chdir is False
