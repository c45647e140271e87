"""
Set-up's decisions, with stand-ins for Debian's tools: what it would do on machines other than this one. That it works is shown by every other test.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[2]
PINS = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line
}


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands that `stand_in` writes come first."""
    tools = tmp_path / "tools"
    tools.mkdir()
    # The `make test` that runs this has set up for tests.
    inherited = {name: value for name, value in os.environ.items() if name != "TESTS" and not name.startswith("MAKE")}
    return {**inherited, "PATH": f"{tools}:{os.environ['PATH']}", "TOOLS": str(tools)}


def stand_in(machine: dict[str, str], name: str, script: str) -> None:
    program = Path(machine["TOOLS"]) / name
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)


def run_setup(machine: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shutil.copytree(CHECKOUT / "setup", folder / "setup")
    return subprocess.run(
        [folder / "setup/setup.sh", *arguments], env=machine, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )


def ask(machine: dict[str, str], question: str, folder: Path = CHECKOUT) -> list[str]:
    """The answer of one of set-up's functions, in lines."""
    parts = " ".join(f". setup/{part}.sh;" for part in ("report", "debian", "pgroot", "pgvector", "torch", "venv"))
    script = f"set -euo pipefail; python=/usr/bin/python3; {parts} {question}"
    done = subprocess.run(["bash", "-c", script], env=machine, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_an_ordinary_user_is_told_the_one_command_for_root(machine: dict[str, str], tmp_path: Path) -> None:
    stand_in(machine, "id", "echo 1000")
    stand_in(machine, "dpkg-query", "exit 1")
    stand_in(machine, "apt-cache", 'case "$*" in "show postgresql") echo "Depends: postgresql-17" ;; esac')
    stand_in(machine, "apt-get", 'touch "$TOOLS/apt-get-was-called"')
    folder = tmp_path / "checkout"
    done = run_setup(machine, folder)
    assert done.returncode == 1
    assert "postgresql-17 postgresql-plpython3-17 postgresql-server-dev-17" in done.stderr
    assert "sudo make setup-system" in done.stderr
    assert not (Path(machine["TOOLS"]) / "apt-get-was-called").exists()


def test_what_runs_needs_less_than_what_is_tested(machine: dict[str, str]) -> None:
    wanted = {canonicalize_name(pin.split("==")[0]) for pin in ask(machine, "wanted_pins")}
    listed = (CHECKOUT / "setup/needed.txt").read_text().splitlines()
    made = subprocess.run([sys.executable, CHECKOUT / "setup/needed.py"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(wanted) == listed == made, "run make lock, or setup/needed.py > setup/needed.txt"
    assert {"grpcio", "torch", "fastapi", "bm25s", "opentelemetry-sdk"} <= wanted
    assert not {"pytest", "ray", "playwright", "openai"} & wanted
    assert len(ask({**machine, "TESTS": "1"}, "wanted_pins")) == len(PINS)


def test_an_environment_for_tests_serves_the_demo_and_not_the_other_way_round(machine: dict[str, str], tmp_path: Path) -> None:
    for part in ("setup", "sidecar/native"):
        shutil.copytree(CHECKOUT / part, tmp_path / part)
    for file in ("constraints.txt", "pyproject.toml"):
        shutil.copy(CHECKOUT / file, tmp_path)
    (tmp_path / ".venv").mkdir()
    machines = {"demo": machine, "tests": {**machine, "TESTS": "1"}}
    answers = {}
    for made_for, maker in machines.items():
        ask(maker, "venv_mark >.venv/.contents", tmp_path)
        answers[made_for] = {name: ask(asking, "venv_is_current && echo yes || echo no", tmp_path) for name, asking in machines.items()}
    assert answers == {"demo": {"demo": ["yes"], "tests": ["no"]}, "tests": {"demo": ["yes"], "tests": ["yes"]}}


def test_a_browser_and_prometheus_are_needed_for_tests_only(machine: dict[str, str]) -> None:
    stand_in(machine, "dpkg-query", "exit 1")
    stand_in(machine, "apt-cache", "true")
    assert not {"chromium", "prometheus"} & set(" ".join(ask(machine, "needed_packages 17")).split())
    assert {"chromium", "prometheus"} <= set(" ".join(ask({**machine, "TESTS": "1"}, "needed_packages 17")).split())
    for target, value in (("test", "1"), ("test-slow", "1"), ("demo", "")):
        said = subprocess.run(
            ["make", "--silent", target, "SHELL=/bin/echo", ".SHELLFLAGS=$(TESTS)"],
            cwd=CHECKOUT,
            env=machine,
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.split()[0] == (value or "setup/setup.sh"), said.stdout


def test_a_path_with_a_space_is_refused(machine: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "a checkout"
    done = run_setup(machine, folder)
    assert done.returncode == 1
    assert "has a space in it" in done.stderr
    assert not (folder / "build").exists()


def test_an_installed_server_goes_before_a_newer_packaged_one(machine: dict[str, str]) -> None:
    stand_in(machine, "dpkg-query", "printf 'ii postgresql-13\\nii postgresql-15\\nii postgresql-client-16\\n'")
    stand_in(machine, "apt-cache", 'echo "Depends: postgresql-17"')
    assert ask(machine, "postgres_major") == ["15"]


def test_a_server_that_is_too_old_is_not_used(machine: dict[str, str]) -> None:
    stand_in(machine, "dpkg-query", "echo 'ii postgresql-13'")
    stand_in(machine, "apt-cache", 'echo "Depends: postgresql-17"')
    assert ask(machine, "postgres_major") == ["17"]


@pytest.mark.parametrize(
    ("candidate", "serves"), [("0.8.0-1", "no"), ("0.8.6-1", "yes"), ("0.8.10-1", "yes"), ("1.0.0-2~bpo1", "yes"), ("(none)", "no")]
)
def test_debians_pgvector_serves_when_it_is_new_enough(machine: dict[str, str], candidate: str, serves: str) -> None:
    stand_in(machine, "dpkg-query", "exit 1")
    stand_in(machine, "apt-cache", f"echo '  Candidate: {candidate}'")
    assert ask(machine, "if packaged_pgvector_serves 15; then echo yes; else echo no; fi") == [serves]


def test_mirrors_are_debians_own_and_not_the_security_archive(machine: dict[str, str]) -> None:
    codename = ask(machine, '. /etc/os-release; echo "$VERSION_CODENAME"')[0]
    listed = [
        f"Debian main {codename} http://mirror.test/debian/",
        f"Debian main {codename}-updates http://mirror.test/debian/",
        f"Debian main {codename}-security http://mirror.test/debian-security/",
        f"Elsewhere main {codename} http://elsewhere.test/apt/",
        f"Debian contrib {codename} http://contrib.test/debian/",
    ]
    stand_in(machine, "apt-get", "printf '%s\\n' " + " ".join(f"'{line}'" for line in listed))
    assert ask(machine, "debian_mirrors") == ["http://mirror.test/debian/"]


def test_mirrors_are_known_without_package_lists(machine: dict[str, str]) -> None:
    codename = ask(machine, '. /etc/os-release; echo "$VERSION_CODENAME"')[0]
    stand_in(
        machine,
        "apt-get",
        f"""case $1 in update) echo "'http://mirror.test/debian/dists/{codename}/InRelease' mirror.test_InRelease 0 " ;; esac""",
    )
    assert ask(machine, "debian_mirrors") == ["http://mirror.test/debian"]


@pytest.mark.parametrize(("packaged", "source"), [("1.13.1+dfsg-4", "cpu"), ("2.6.0+dfsg-7", "debian")])
def test_torch_is_debians_where_that_is_new_enough(machine: dict[str, str], tmp_path: Path, packaged: str, source: str) -> None:
    stand_in(machine, "dpkg-query", "exit 1")
    stand_in(machine, "apt-cache", f"echo '  Candidate: {packaged}'")
    assert ask(machine, f"cd {tmp_path}; unset TORCH; torch_source") == [source]


def test_constraints_pin_every_requirement() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bundle = re.search(r"^packages *:= *(.*)$", (CHECKOUT / "extension/Makefile").read_text(), re.MULTILINE)
    assert bundle is not None
    for requirement in map(Requirement, [*required, *bundle[1].split(), "pip", "setuptools"]):
        pinned = PINS.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pinned), f"{requirement} does not allow {pinned}"


def test_the_environment_is_what_constraints_say() -> None:
    apart = {"torch"}  # Debian's own, on Debian 13
    installed = {canonicalize_name(found.metadata["Name"]): found.version for found in importlib.metadata.distributions()}
    assert {name: installed.get(name) for name in PINS if name not in apart} == {name: pin for name, pin in PINS.items() if name not in apart}


@pytest.fixture
def home(tmp_path: Path, machine: dict[str, str]) -> Path:
    """A folder of servers, with the Makefile of a checkout in which nothing is installed beside it."""
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    (tmp_path / "nv_embed").mkdir()
    for module in ("__init__.py", "home.py"):
        shutil.copy(CHECKOUT / "nv_embed" / module, tmp_path / "nv_embed")
    home = tmp_path / "home"
    for file in ("pgroot/bin", "data/PG_VERSION", "log/sidecar", "state.json", "of others"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).touch()
    machine["NV_EMBED_HOME"] = str(home)
    return home


def make_clean(machine: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "clean", *arguments], cwd=folder, env=machine, capture_output=True, text=True, timeout=60, check=False)


def test_make_clean_keeps_the_databases_unless_it_is_told_not_to(machine: dict[str, str], home: Path) -> None:
    assert make_clean(machine, home.parent).returncode == 0
    assert {path.name for path in home.iterdir()} == {"data", "state.json", "of others"}
    assert make_clean(machine, home.parent, "DATABASES=1").returncode == 0
    assert {path.name for path in home.iterdir()} == {"of others"}


def test_make_clean_leaves_a_server_alone_that_it_cannot_stop(machine: dict[str, str], home: Path) -> None:
    (home / "data/postmaster.pid").touch()
    done = make_clean(machine, home.parent, "DATABASES=1")
    assert done.returncode != 0
    assert "nothing is here to stop it: run make setup and make clean again" in done.stderr
    assert (home / "data/PG_VERSION").exists()


def test_make_clean_takes_nothing_from_a_folder_without_servers(machine: dict[str, str], home: Path) -> None:
    shutil.rmtree(home / "pgroot")
    shutil.rmtree(home / "data")
    assert make_clean(machine, home.parent, "DATABASES=1").returncode == 0
    assert (home / "log").exists()


def test_make_help_names_every_target() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "-s", "help"], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert {"setup", "demo", "up", "down", "test", "check"} <= set(targets)
    assert [target for target in targets if f"\n  {target} " not in shown and target != "proto-check"] == []
