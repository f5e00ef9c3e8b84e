"""Finds the packages.

`tasks/`, `training/` and `results/` are parts of `apr_plugin` that are at the top of the repository (see
pyproject.toml).
"""

from setuptools import find_packages, setup

OUTSIDE = ("results", "tasks", "training")

setup(
    packages=[
        *find_packages(include=["apr_plugin", "apr_plugin.*"]),
        *(
            f"apr_plugin.{name}"
            for name in find_packages(include=[each for folder in OUTSIDE for each in (folder, f"{folder}.*")])
        ),
    ]
)
