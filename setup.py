"""Puts the folder configs/ into the package as jaxlm/configs, which pyproject.toml alone cannot say."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["jaxlm*"]), "jaxlm.configs"], package_dir={"jaxlm.configs": "configs"})
