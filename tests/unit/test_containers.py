"""
What the files in docker/ promise, as far as it can be told without an engine. That the images work is shown by `make images-check`.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from nv_embed_sidecar.settings import Settings

import nv_embed

DOCKER = Path(__file__).resolve().parents[2] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


def stages(dockerfile: Path) -> dict[str, list[str]]:
    """Instructions of each stage, those of the stages that it stands on first; the last one is called by its place too."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.M).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if from_ := re.fullmatch(r"FROM (\S+)(?: AS (\S+))?", line):
            lines = list(found.get(from_[1], []))
            found[from_[2] or "last"] = lines
        else:
            lines.append(line)
    return found


def instructions(service: dict[str, Any]) -> list[str]:
    build = service["build"]
    return stages(DOCKER / build["context"] / build["dockerfile"])[build.get("target", "last")]


def last(lines: list[str], instruction: str) -> str:
    return [line.removeprefix(instruction).strip() for line in lines if line.startswith(f"{instruction} ")][-1]


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    return [(volume.split(":")[0], volume.split(":")[1]) for volume in service.get("volumes", [])]


def test_there_are_all_the_services() -> None:
    assert set(SERVICES) == {"postgres", "sidecar", "sidecar-gpu", "worker", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_file_and_volume_that_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert instructions(service)
    for source, _ in mounts(service):
        assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert set(service.get("depends_on", {})) <= set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].rpartition(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+(-cuda)?", tag), tag
    if "build" in SERVICES[name]:
        assert tag.removesuffix("-cuda") == nv_embed.__version__


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_privileges_or_a_root_to_write_to(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode"} & set(service)


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_its_image_as_the_image_says(name: str) -> None:
    lines = instructions(SERVICES[name])
    assert last(lines, "USER") == SERVICES[name]["user"]
    assert json.loads(last(lines, "HEALTHCHECK").partition(" CMD ")[2]) == SERVICES[name]["healthcheck"]["test"][1:]
    assert json.loads(last(lines, "ENTRYPOINT"))
    assert last(lines, "STOPSIGNAL").startswith("SIG")


@pytest.mark.parametrize("name", OURS)
def test_what_a_service_writes_is_kept_in_a_volume(name: str) -> None:
    declared = {line.removeprefix("VOLUME ") for line in instructions(SERVICES[name]) if line.startswith("VOLUME ")}
    assert {target for source, target in mounts(SERVICES[name]) if source in COMPOSE["volumes"]} == declared


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_what_somebody_waits_for_has_a_health_check(name: str) -> None:
    for awaited, how in SERVICES[name].get("depends_on", {}).items():
        assert how["condition"] == "service_healthy"
        assert SERVICES[awaited]["healthcheck"]["test"][0] == "CMD"
        # Without required: false a service of another profile could not be left out.
        assert "profiles" not in SERVICES[awaited] or how["required"] is False


@pytest.mark.parametrize("name", SERVICES)
def test_passwords_come_from_files(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    for variable, value in environment.items():
        if "PASSWORD" in variable:
            assert variable.endswith("_FILE")
            assert Path(value).parent == Path("/run/secrets")
            assert Path(value).name in SERVICES[name]["secrets"]


def test_one_of_two_sidecars_is_chosen_by_profile_and_has_the_same_name() -> None:
    cpu, gpu = SERVICES["sidecar"], SERVICES["sidecar-gpu"]
    assert (cpu["profiles"], gpu["profiles"]) == (["cpu"], ["gpu"])
    assert gpu["networks"]["nv_embed"]["aliases"] == ["sidecar"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_the_sidecars_variables_are_settings_of_its_own() -> None:
    text = "".join(path.read_text() for path in [*DOCKERFILES, DOCKER / "compose.yaml", DOCKER / "images-check", DOCKER / "sidecar-health"])
    said = {name.lower() for name in re.findall(r"NV_EMBED_SIDECAR_([A-Z_]+)", text)}
    assert said <= set(Settings.model_fields)
    assert {"listen", "http", "models", "ready_file"} <= said


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_is_in_the_context(dockerfile: Path) -> None:
    let_in = {line[1:] for line in (DOCKER.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((DOCKER.parent / path).exists() for path in let_in)
    text = dockerfile.read_text()
    named = set(re.findall(r"\bdocker/[\w-]+(?=[ \n])", re.sub(r"^#.*\n", "", text, flags=re.M)))
    assert named
    assert named <= let_in


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_stands_on_a_release_of_debian(dockerfile: Path) -> None:
    assert re.search(r"^ARG BASE=debian:(trixie|bookworm)-slim$", dockerfile.read_text(), flags=re.M)
    stages_of_it = stages(dockerfile)
    for from_ in re.findall(r"^FROM (\S+)", dockerfile.read_text(), flags=re.M):
        assert from_ == "${BASE}" or from_ in stages_of_it


def test_prometheus_asks_the_sidecar_and_the_worker_where_they_answer() -> None:
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["sidecar"]["metrics_path"] == "/v1/metrics"
    assert jobs["sidecar"]["static_configs"] == [{"targets": ["sidecar:8000"]}]
    (port,) = (address.rpartition(":")[2] for address in SERVICES["worker"]["command"][1:])
    assert jobs["worker"]["static_configs"] == [{"targets": [f"worker:{port}"]}]
    targets = dict(reversed(mount) for mount in mounts(SERVICES["prometheus"]))
    assert all(str(Path(pattern).parent) in targets for pattern in config["rule_files"])
