"""Packages of the wheel: they are found, so that a new axis needs no edit here. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["harness", "harness.*", "launch", "launch.*"]), "harness.conf", "reducebench"],
    package_dir={"harness.conf": "conf", "reducebench": "alias"},
    package_data={"harness.conf": ["*.yaml", "*/*.yaml"], "harness": ["py.typed"], "reducebench": ["py.typed"]},
)
