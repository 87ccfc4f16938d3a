"""README and the shipped configurations say what the software does: verbs, options, keys."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from graph_store.config import GraphConfig
from txpert_dist.cli.app import app
from txpert_dist.config_file import load

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for language, block in BLOCKS
    if language == ""
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("txpert ")
]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda file: file.name
)
def test_every_shipped_configuration_loads(file: Path) -> None:
    assert load(file).name


def test_readme_has_commands() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_parses(command: str) -> None:
    """The command line's own parser accepts it: verb, options, number of arguments."""
    node = typer.main.get_command(app)
    arguments = shlex.split(command)[1:]
    while hasattr(node, "commands"):
        node = node.commands[arguments.pop(0)]
    node.make_context(node.name, arguments)


def test_the_recipe_of_the_readme_is_one() -> None:
    recipes = [block for language, block in BLOCKS if language == "yaml" and "graphs:" in block]
    assert [len(GraphConfig.model_validate(yaml.safe_load(block)).graphs) for block in recipes] == [5]


def test_the_run_of_the_readme_loads(tmp_path: Path) -> None:
    runs = [block for language, block in BLOCKS if language == "yaml" and "train:" in block]
    assert len(runs) == 1
    (tmp_path / "run.yaml").write_text(runs[0])
    assert load(tmp_path / "run.yaml").train.epochs == 40
