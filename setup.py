"""Packages of the wheel: they are found, so that a new axis needs no edit here. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["harness*", "launch*"], exclude=["harness.alias"]), "harness.conf", "reducebench"],
    package_dir={"harness.conf": "conf", "reducebench": "harness/alias"},
    package_data={"harness.conf": ["*.yaml", "*/*.yaml"], "harness": ["py.typed"], "reducebench": ["py.typed"]},
)
