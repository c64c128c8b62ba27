"""From what OmegaConf holds to checked dataclasses."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.schema.refusal import RefusedError


def to_dataclass(node: DictConfig, flat: Iterable[str]) -> Any:
    """Return the dataclass that a structured node stands for; `flat` names its lists and mappings. Raises RefusedError."""
    for name in flat:
        _check_flat(name, OmegaConf.select(node, name))
    try:
        return OmegaConf.to_object(node)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    except OmegaConfBaseException as error:
        raise RefusedError(str(error).splitlines()[0]) from error


def _check_flat(name: str, node: Any) -> None:
    """Raise RefusedError for a list or a mapping inside another one, which OmegaConf takes for text or a number there."""
    items = node.values() if isinstance(node, DictConfig) else node if isinstance(node, ListConfig) else []
    for item in items:
        if isinstance(item, DictConfig | ListConfig):
            kind = "a mapping" if isinstance(item, DictConfig) else "a list"
            raise RefusedError(f"{name}={item}: holds {kind}; accepted: numbers and texts")
