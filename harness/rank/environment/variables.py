"""Environment variables that change numbers or times: those that are written down, and those in which ranks differ."""

import hashlib
import json
import os
import pwd
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.probes.control import Control
from harness.rank.environment.files import spell_cpus, text
from harness.rank.environment.masking import mask_variable

_COMPARED = (
    *("NCCL_", "RCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_", "CUBLAS_", "HIP_", "ROCR_", "HSA_", "MIOPEN_"),
    *("FI_", "UCX_"),
)
_WRITTEN_DOWN = (*_COMPARED, "NVIDIA_", "OMP_", "MKL_", "KMP_", "SLURM_JOB_ID")
_OF_ONE_PLACE = re.compile(
    r"\w*(_FILE|_DIR|_DIRECTORY|_PATH|_HOME|_CACHE\w*|_IFNAME|_VISIBLE_DEVICES|_DEVICE_ORDINAL)|NCCL_HOSTID|NCCL_DEBUG\w*"
)
"""Variables that may differ from host to host or rank to rank: places in a file system, interfaces, devices, logs."""
_ETC, _USERS = "/etc/nccl.conf", "~/.nccl.conf"
_SETTING = re.compile(r"(\w+)=(.*)")
NOT_SET = "not set"


def written_down(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables with their values; what looks like a secret is masked."""
    return {name: mask_variable(name, value) for name, value in sorted(variables.items()) if name.startswith(_WRITTEN_DOWN)}


def nccl_files(variables: Mapping[str, str], root: Path = Path("/"), home: Path | None = None) -> dict[str, dict[str, str]]:
    """Settings in the files that NCCL reads, by file, masked; the file that counts more comes last.

    A variable of the environment counts more than either: NCCL sets what is not set.
    """
    own, home = variables.get("NCCL_CONF_FILE"), _home() if home is None else home
    paths = {_ETC: root / _ETC.lstrip("/"), own or _USERS: Path(own) if own else home / ".nccl.conf"}
    found = {name: _settings(path) for name, path in paths.items()}
    return {name: written_down(settings) for name, settings in found.items() if settings}


def _home() -> Path:
    """Home of the user as NCCL finds it, which does not look at HOME."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container's user without a name
        return Path("/nonexistent")


def _settings(path: Path) -> dict[str, str]:
    """Settings of a file; of lines of one name the first counts."""
    lines = (_SETTING.fullmatch(line) for line in (text(path) or "").splitlines())
    return {line[1]: line[2] for line in reversed([*lines]) if line}


def differing(control: Control, variables: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Variables that are not equal on all ranks: name to value to the ranks that have it, as `0-3,5`. All ranks call."""
    files = [setting for settings in nccl_files(variables).values() for setting in settings.items()]
    found = {**dict(files), **written_down(variables)}
    own = {name: value for name, value in found.items() if name.startswith(_COMPARED) and not _OF_ONE_PLACE.fullmatch(name)}
    spelled = json.dumps(own, sort_keys=True)
    if len(set(control.all_gather_text(hashlib.sha256(spelled.encode()).hexdigest()))) == 1:
        return {}  # as usual: a digest is short where there are thousands of ranks
    return by_value([json.loads(one) for one in control.all_gather_text(spelled)])


def by_value(ranks: Sequence[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Name to value to ranks, of those names that have several values."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted({name for rank in ranks for name in rank}):
        holders: dict[str, set[int]] = {}
        for place, rank in enumerate(ranks):
            holders.setdefault(rank.get(name, NOT_SET), set()).add(place)
        if len(holders) > 1:
            found[name] = {value: spell_cpus(places) for value, places in holders.items()}
    return found
