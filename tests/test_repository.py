"""What the repository says about itself: the README's links, files and numbers, and that its recipes agree."""

import json
import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def pyproject() -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_relative_links_of_the_readme_resolve():
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", README)
    relative = [a or b for a, b in targets if "://" not in (a or b)]
    assert len(relative) > 10
    assert [t for t in relative if not (ROOT / t).exists()] == []


def test_headings_that_the_readme_links_to_exist():
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", README, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= slugs


def test_files_that_the_readme_names_exist():
    """Every path in backticks but those that a command makes (outputs/, runs/)."""
    named = re.findall(r"`((?:minirodin|tests|notebooks|results|data_samples|tools)/[\w./*-]*)", README)
    named += re.findall(r"python (\w+/\w+\.py)", README)
    assert [n for n in named if not list(ROOT.glob(n.rstrip("/")))] == []


def test_names_in_the_code_column_of_the_equations_exist():
    """`module.name` in the table of E1 … E20 can be imported, and tests are where it says."""
    import importlib

    rows = [line.split("|")[1:-1] for line in README.splitlines() if re.match(r"\| E\d+", line)]
    assert [row[0].split()[0] for row in rows] == [f"E{i}" for i in range(1, 21)]
    for row in rows:
        for module, name in re.findall(r"`(\w+)\.(\w+)`", row[1]):
            assert hasattr(importlib.import_module(f"minirodin.{module}"), name), f"{module}.{name}"
        for test in re.findall(r"`(test_\w+)`", row[3]):
            assert (ROOT / "tests" / f"{test}.py").exists(), test


def test_numbers_of_the_readme_are_those_of_the_results():
    """If this fails: python tools/results_table.py"""
    assert runpy.run_path(str(ROOT / "tools" / "results_table.py"))["rewrite"](README) == README


def test_results_say_when_where_and_from_what():
    for path in (ROOT / "results").glob("*.json"):
        values = json.loads(path.read_text())
        assert {"date", "commit", "device"} <= set(values), path.name
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", values["date"]), path.name
        assert re.fullmatch(r"[0-9a-f]{7,40}\+?", values["commit"]), path.name


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    from minirodin import cli

    for command in re.findall(r"^minirodin (\w+)", README, re.M):
        assert callable(getattr(cli, command)), command


def test_environment_yml_agrees_with_pyproject():
    project = pyproject()["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (d["pip"] for d in conda if isinstance(d, dict))
    extras = re.fullmatch(r"-e \.\[(.+)\]", pip[-1]).group(1).split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    python = next(d for d in conda if isinstance(d, str) and d.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(project["requires-python"])


def test_constraints_fit_the_ranges():
    project = pyproject()["project"]
    everything = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    ranges = {r.name: r.specifier for r in map(Requirement, everything)}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (version,) = (s.version for s in pin.specifier)
            assert version in ranges[pin.name], line


def test_version_is_stated_once():
    import minirodin

    assert pyproject()["project"]["version"] == minirodin.__version__


def test_every_package_is_shipped():
    packages = {str(p.parent.relative_to(ROOT)).replace(os.sep, ".") for p in ROOT.glob("minirodin/**/__init__.py")}
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == packages


def test_modules_can_be_read_in_one_sitting():
    lines = {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in ROOT.glob("minirodin/**/*.py")}
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_every_value_of_the_full_preset_says_where_it_comes_from():
    """A line that gives a value ends in a comment that names its source, or whose choice it is."""
    source = (ROOT / "minirodin" / "config.py").read_text(encoding="utf-8")
    block = re.search(r'"full": Config\((.*?)\n    \),\n\}', source, re.S).group(1)
    value = re.compile(r"=(\d|\(\d|\w+Config\(\w+=[\d(]|\(\)|True|False)|\*\*")
    given = [line.strip() for line in block.splitlines() if value.search(line)]
    assert len(given) > 25
    assert [line for line in given if not re.search(r"# .*(paper|RodinHD|PITI|our choice)", line)] == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_nothing_big_or_private_is_tracked():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    paths = [ROOT / f for f in files if f and (ROOT / f).is_file()]
    weights = ROOT / "data_samples" / "pretrained"
    assert [p.name for p in paths if p.stat().st_size > 16e6 and weights not in p.parents] == []
    assert sum(p.stat().st_size for p in paths if weights in p.parents) <= 45 * 2**20
    assert sum(p.stat().st_size for p in paths) <= 60 * 2**20
    written = {".py", ".md", ".toml", ".yml", ".txt", ".json", ".ipynb", ""}
    text = {p: p.read_text(encoding="utf-8") for p in paths if p.suffix in written and p != Path(__file__)}
    private = re.compile(r"/(?:home|root|work|Users)/\w")
    assert [p.name for p, content in text.items() if private.search(content)] == []
