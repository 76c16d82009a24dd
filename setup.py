"""Reads settings.ini, the only place for the package's metadata."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(key: str) -> list[str]:
    return [line.strip() for line in settings.get(key, "").splitlines() if line.strip()]


setup(
    name=settings["name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license=settings["license"],
    url=f"https://github.com/{settings['user']}/{settings['repo']}",
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["finetune_lib*", "milestones*"]),
    package_data={"milestones": ["**/*.py", "**/*.md", "**/*.json"]},
    install_requires=lines("requirements"),
    extras_require={key.removesuffix("_requirements"): lines(key) for key in settings if key.endswith("_requirements")},
    entry_points={"console_scripts": lines("console_scripts")},
)
