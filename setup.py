"""Packages of the wheel: they are found, so that a new axis needs no edit here. Everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

CODE = find_packages(include=["harness*", "launch*"], exclude=["harness.alias"])
GROUPS = find_namespace_packages("conf", exclude=["*__pycache__"])
CONFIGURATION = ["harness.conf", *(f"harness.conf.{group}" for group in GROUPS)]

setup(
    packages=[*CODE, *CONFIGURATION, "reducebench"],
    package_dir={"harness.conf": "conf", "reducebench": "harness/alias"},
    package_data={name: ["*.yaml"] for name in CONFIGURATION} | {"harness": ["py.typed"], "reducebench": ["py.typed"]},
)
