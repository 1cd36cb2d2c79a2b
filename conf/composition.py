"""Turn Hydra overrides, YAML text or a Flower run config into a checked experiment.

Trust: public on both sides. A site gets this text from the provider, so interpolations, which could read the site's
environment, are refused; that the terms are the agreed ones is checked against the agreement, elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Final, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError, scan  # type: ignore[import-untyped]  # OmegaConf's own parser

from conf.schema import DataConfig, ExperimentConfig
from protocol.errors import ConfigurationError

CONFIG_DIRECTORY: Final = Path(__file__).resolve().parent
"""Where the YAML groups are."""

MAX_YAML_CHARACTERS: Final = 1 << 16
MAX_VALUE_CHARACTERS: Final = 200
"""Longest texts that are taken from a run config."""

_NO_OVERRIDES: Final = ("hydra", "run", "terms")
"""Keys of a run config that stand for no override."""

_RUN_CONFIG_KEY: Final = re.compile(r"[a-z_]+(\.[a-z_]+)*")
_GROUPS: Final = (*(group.name for group in fields(ExperimentConfig)), "experiment")
_OPTION: Final = re.compile(r"[a-z0-9_]+")
_REFUSALS: Final = (HydraException, OmegaConfBaseException, ValueError, TypeError)
"""What Hydra and OmegaConf raise at wrong input; both also use the built-in two."""
_NOISE: Final = ("reference_type", "object_type", "Config search path", "provider=", "See https", "To append to your")


def register() -> None:
    """Make the typed schema known to Hydra; may be called again."""
    ConfigStore.instance().store(name="experiment_schema", node=_schema(), provider="cipherward")


def compose(overrides: Sequence[str]) -> ExperimentConfig:
    """Compose the default experiment with Hydra overrides, such as "strategy.rounds=3" or "model=mlp".

    Raises:
        ConfigurationError: An unknown group, option or key, or a value out of range; names the key.
    """
    register()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
            composed = hydra.compose("config", overrides=list(overrides))
    except _REFUSALS as error:
        raise ConfigurationError(_readable(error)) from error
    return from_hydra(composed)


def from_hydra(config: DictConfig) -> ExperimentConfig:
    """Turn what Hydra composed into a checked experiment.

    Raises:
        ConfigurationError: An unknown or missing key, a value out of range, or an interpolation; names the key.
    """
    try:
        _check_literal("", OmegaConf.to_container(config, resolve=False))
        return cast(ExperimentConfig, OmegaConf.to_object(OmegaConf.merge(_schema(), config)))
    except _REFUSALS as error:
        raise ConfigurationError(_readable(error)) from error


def to_yaml(config: ExperimentConfig) -> str:
    """Return the whole experiment as YAML; `from_yaml` gives back an equal one.

    Raises:
        ConfigurationError: A name holds an interpolation or a control character, which YAML would not give back.
    """
    try:
        text = OmegaConf.to_yaml(OmegaConf.structured(config))
    except _REFUSALS as error:
        raise ConfigurationError(_readable(error)) from error
    if from_yaml(text) != config:
        raise ConfigurationError("a name in the configuration holds characters that YAML does not give back")
    return text


def from_yaml(text: str) -> ExperimentConfig:
    """Invert `to_yaml`.

    Raises:
        ConfigurationError: Not a YAML mapping, an unknown or missing key, or a value out of range; names the key.
    """
    try:
        if any(isinstance(token, AliasToken) for token in scan(text)):
            raise ConfigurationError("the configuration repeats a part by a YAML alias; write it out")
        config = OmegaConf.create(text)
    except (YAMLError, *_REFUSALS) as error:
        raise ConfigurationError(f"the configuration is not YAML: {_readable(error)}") from error
    if not isinstance(config, DictConfig):
        raise ConfigurationError("the configuration is not a YAML mapping")
    return from_hydra(config)


def run_config(config: ExperimentConfig) -> dict[str, str]:
    """Return the run config of an experiment; `from_run_config` gives back an equal one.

    Returns:
        `hydra`, the experiment as YAML, and `terms`, the digest of what the agreement pins: sites compare it with
        their own before they parse anything.

    Raises:
        ConfigurationError: As `to_yaml`.
    """
    return {"hydra": to_yaml(config), "terms": config.terms.digest}


def from_run_config(run_config: Mapping[str, str | int | float | bool]) -> ExperimentConfig:
    """Turn Flower's run config into a checked experiment.

    Args:
        run_config: If `hydra` is not empty, it is the whole experiment as YAML and nothing else counts. Otherwise each
            key "a.b" with a value that is not empty stands for the Hydra override "a.b=value"; `run` and `terms` say
            nothing about the experiment.

    Raises:
        ConfigurationError: As `compose` and `from_yaml`; names the key.
    """
    return _from_run_config(tuple(run_config.items()))


@lru_cache(maxsize=16)
def _from_run_config(run_config: tuple[tuple[str, str | int | float | bool], ...]) -> ExperimentConfig:
    """Compose once per process: a site asks with every message, and composing takes longer than most of them."""
    whole = str(dict(run_config).get("hydra", ""))
    # the run config comes from outside, and parsing takes longer than linear time
    longest = max((len(str(value)) for key, value in run_config if key != "hydra"), default=0)
    if len(whole) > MAX_YAML_CHARACTERS or longest > MAX_VALUE_CHARACTERS:
        raise ConfigurationError(
            f"run config: a value is longer than {MAX_VALUE_CHARACTERS} characters, or the YAML in `hydra` than "
            f"{MAX_YAML_CHARACTERS}"
        )
    if whole:
        return from_yaml(whole)
    overrides = []
    for key, value in run_config:
        if value == "" or key in _NO_OVERRIDES:
            continue
        if not _RUN_CONFIG_KEY.fullmatch(key) or key.split(".")[0] not in _GROUPS:
            raise ConfigurationError(f"run config: {key!r} is not below one of {', '.join(_GROUPS)}")
        if key in _GROUPS and not _OPTION.fullmatch(str(value)):
            raise ConfigurationError(f"run config: {key} names no file in conf/{key}")
        overrides.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return compose(overrides)


def _schema() -> DictConfig:
    """Return the schema as nodes that can be overridden: OmegaConf makes frozen dataclasses read-only."""
    schema = _unlocked(OmegaConf.structured(ExperimentConfig))
    schema.data = _unlocked(OmegaConf.structured(DataConfig))  # has no default, so nothing was there to unlock
    return schema


def _unlocked(node: DictConfig) -> DictConfig:
    OmegaConf.set_readonly(node, False)
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            _unlocked(node[key])
    return node


def _check_literal(name: str, value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_literal(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            _check_literal(name, inner)
    elif isinstance(value, str) and "${" in value:
        raise ConfigurationError(f"{name}: interpolations are refused, terms are literal")


def _readable(error: Exception) -> str:
    """Return Hydra's explanation on one line, without its type names and search paths."""
    lines = [line.strip() for text in (error, error.__cause__ or "") for line in str(text).splitlines()]
    kept = [line.removeprefix("full_key:").strip() for line in lines if not line.startswith(_NOISE)]
    where = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
    return where + "; ".join(dict.fromkeys(filter(None, kept)))
