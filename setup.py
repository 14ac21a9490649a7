"""Packaging of dattri: everything it needs to know stands in `settings.ini`."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def lines(key):
    """The non-empty lines of a setting that holds a list."""
    return [line.strip() for line in settings.get(key, "").splitlines() if line.strip()]


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    keywords=settings["keywords"],
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["dattri", "dattri.*"]),
    package_data={"dattri": ["py.typed"]},
    python_requires=f">={settings['min_python']}",
    install_requires=lines("requirements"),
    extras_require={extra: lines(f"{extra}_requirements") for extra in ("text", "music", "dev")},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["dattri=dattri._docs:LINKS"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {settings['audience']}",
        *(f"Programming Language :: Python :: {version}" for version in ("3", "3.11", "3.12", "3.13")),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
