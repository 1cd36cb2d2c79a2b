"""The Hydra configuration of an experiment, as YAML groups and as the checked dataclasses they become.

Trust: public on both sides. No secret and no path of a key belongs in here; what a site pins is the agreement.
"""

from conf.composition import (
    CONFIG_DIRECTORY,
    compose,
    from_hydra,
    from_run_config,
    from_yaml,
    register,
    run_config,
    to_yaml,
)
from conf.schema import DataConfig, ExperimentConfig, FederationConfig, SourceConfig

__all__ = [
    "CONFIG_DIRECTORY",
    "DataConfig",
    "ExperimentConfig",
    "FederationConfig",
    "SourceConfig",
    "compose",
    "from_hydra",
    "from_run_config",
    "from_yaml",
    "register",
    "run_config",
    "to_yaml",
]
