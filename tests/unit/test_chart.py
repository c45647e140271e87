"""
What the Helm chart promises. What can be read from its files is checked everywhere; what Helm makes of them where Helm's library and the schemas are,
which `make chart-check` installs.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.settings import Settings
from prometheus_client.parser import text_string_to_metric_families
from services import serving

import nv_embed
from nv_embed.cli import app
from nv_embed.exporter import STATUS_GAUGES

DOCKER = Path(__file__).resolve().parents[2] / "docker"
CHART = DOCKER / "helm" / "nv-embed"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
DOCKERFILE = (DOCKER / "sidecar.Dockerfile").read_text()
RELEASE, NAMESPACE = "app", "prod"
KUBERNETES = ("1.27", "1.37")
"""The oldest that Chart.yaml allows, and the newest whose schema is at hand."""

PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
TESTS_OWN = {"fake_delay_s", "fake_fault"}
MONITORED = {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}
URL = "postgresql://nv_embedder@db:5432/app"

VALUES: dict[str, dict[str, Any]] = {
    "cpu": {"worker": {"database": {"url": URL}}},
    "gpu": {
        "imagePullSecrets": [{"name": "registry"}],
        "sidecar": {
            "gpus": 1,
            "image": {"repository": "registry.example/nv_embed-sidecar"},
            "models": ["/models/llama-3.2-nv-embedqa-1b-v2"],
            "options": {
                "precision": "bf16",
                "max-queue-texts": 1_000_000,
                "hang-s": 2.5,
                "dims": "256,128",
                "bidirectional": True,
                "log-format": "text",
                "otlp": "http://collector:4317",
            },
            "ui": {"enabled": True, "databaseSecret": {"name": "page-database"}},
            "weights": {"existingClaim": "weights"},
            "tls": {"existingSecret": "sidecar-tls"},
            "tokens": {"existingSecret": "sidecar-tokens"},
            "autoscaling": {"kind": "keda", "prometheusUrl": "http://prometheus:9090", "lagSeconds": 120},
            "nodeSelector": {"nvidia.com/gpu.present": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "podAnnotations": {"example": "yes"},
        },
        "worker": {
            "database": {"urlSecret": {"name": "database"}, "passwordSecret": {"name": "database"}, "caSecret": "database-ca"},
            "token": {"existingSecret": "worker-token"},
            "ca": {"existingSecret": "sidecar-ca"},
        },
        "networkPolicy": {
            "monitoring": [PROMETHEUS],
            "sidecarEgress": [{"ports": [{"port": 443}]}],
        },
        "monitoring": {**MONITORED, "token": {"existingSecret": "prometheus-token"}, "ca": {"existingSecret": "sidecar-ca"}},
    },
    "mutual tls, hpa": {
        "sidecar": {
            "tls": {"existingSecret": "sidecar-tls", "clientCaKey": "ca.crt"},
            "autoscaling": {"kind": "hpa", "interactiveSeconds": 0.25, "lagSeconds": 300},
        },
        "worker": {
            "database": {"url": URL, "passwordSecret": {"name": "database"}},
            "ca": {"existingSecret": "sidecar-ca"},
            "certificate": {"existingSecret": "worker-tls"},
        },
        "networkPolicy": {"monitoring": [PROMETHEUS]},
        "monitoring": {**MONITORED, "certificate": {"existingSecret": "prometheus-tls"}},
    },
    "sidecars alone, one": {
        "fullnameOverride": "embed",
        "sidecar": {"replicas": 1, "podDisruptionBudget": {"enabled": False}, "topologySpreadConstraints": []},
        "worker": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "monitoring": MONITORED,
    },
    "workers alone, library install": {
        "sidecar": {"enabled": False},
        "worker": {"replicas": 3, "lanes": 5, "endpoints": ["10.0.0.1:50051,10.0.0.2:50051", "other:50051"], "database": {"url": URL}},
        "networkPolicy": {"monitoring": [PROMETHEUS]},
        "monitoring": MONITORED,
    },
}

Manifest = dict[str, Any]


@pytest.fixture(params=VALUES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return known(request.param)


@cache
def known(name: str) -> list[Manifest]:
    return rendered(VALUES[name])


def rendered(values: dict[str, Any]) -> list[Manifest]:
    """What `helm template` prints, from Helm's own library."""
    helm = pytest.importorskip("helm_python", reason="Helm's library is not installed: make chart-check")
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        texts = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return [found for path, text in texts.items() if path.endswith(".yaml") for found in yaml.safe_load_all(text) if found]


def kinds(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [found for found in manifests if found["kind"] == kind]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Of each Deployment: which part it is, its pod's template and the one container."""
    for deployment in kinds(manifests, "Deployment"):
        template = deployment["spec"]["template"]
        (container,) = template["spec"]["containers"]
        yield container["name"], template, container


def environment(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "of a Secret") for variable in container["env"]}


def probes(container: Manifest) -> list[Manifest]:
    return [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in container]


def leaves(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, f"{path}.{name}")
    else:
        yield path


def schema_leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, below in schema["properties"].items():
        yield from schema_leaves(below, f"{path}.{name}") if "properties" in below else (f"{path}.{name}",)


# What can be read from the files.


def test_chart_and_images_have_the_librarys_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == nv_embed.__version__


def test_the_schema_knows_every_value_that_there_is_and_no_other() -> None:
    whole = set(schema_leaves(SCHEMA))
    said = {re.match(r"[.\w]+?(?=$|\.(?:requests|limits)(?:\.|$)|\.labels\.)", leaf)[0] for leaf in leaves(DEFAULTS)}  # type: ignore[index]
    cut = {re.sub(r"\.(requests|limits)$", "", leaf) for leaf in whole}
    assert {re.sub(r"\.labels$", "", leaf) for leaf in said} == {re.sub(r"\.labels$", "", leaf) for leaf in cut - {".global"}}


def test_options_are_the_sidecars_settings_that_the_chart_does_not_say_itself() -> None:
    template = (CHART / "templates" / "sidecar-deployment.yaml").read_text()
    by_chart = {name.lower() for name in re.findall(r"NV_EMBED_SIDECAR_([A-Z_]+),", template)} - {"log_format"}
    listed = {name.replace("-", "_") for name in SCHEMA["properties"]["sidecar"]["properties"]["options"]["propertyNames"]["enum"]}
    assert not listed & by_chart
    assert listed | by_chart | TESTS_OWN == set(Settings.model_fields)


def test_rules_and_dashboards_are_those_of_docker_itself() -> None:
    for name, there in (("rules", DOCKER / "prometheus" / "rules"), ("dashboards", DOCKER / "grafana" / "dashboards")):
        assert (CHART / "files" / name).is_symlink()
        assert (CHART / "files" / name).resolve() == there
        assert list(there.iterdir())


def test_nobody_is_woken_for_a_sidecar_that_is_still_loading() -> None:
    (group,) = yaml.safe_load((DOCKER / "prometheus" / "rules" / "sidecar.yaml").read_text())["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert (rules["SidecarAway"]["labels"]["severity"], rules["NoSidecar"]["labels"]["severity"]) == ("warn", "page")
    assert int(rules["SidecarAway"]["for"].removesuffix("m")) * 60 > DEFAULTS["sidecar"]["startupSeconds"]


def test_the_metrics_that_sidecars_are_scaled_by_are_told_by_a_sidecar_and_a_worker() -> None:
    template = (CHART / "templates" / "sidecar-autoscaling.yaml").read_text()
    named = set(re.findall(r"\bnv_embed_\w+", template))
    with serving(FakeEngine(), http=("127.0.0.1:0",)) as server:
        text = httpx.get(f"http://{server.http_addresses[0]}/v1/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    told = {sample.name for sample in samples}
    priorities = {sample.labels["priority"] for sample in samples if sample.name == "nv_embed_queue_oldest_seconds"}
    assert priorities == set(re.findall(r'set \$waits "(\w+)"', template))
    assert named == {"nv_embed_queue_oldest_seconds", "nv_embed_oldest_pending_seconds"}
    assert named <= {*told, *(name for name, _ in STATUS_GAUGES)}


# What Helm makes of them.


def test_every_manifest_is_what_kubernetes_takes(manifests: list[Manifest]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="Kubernetes' schemas are not installed: make chart-check")
    ours = [found for found in manifests if found["apiVersion"].split("/")[0] not in ("monitoring.coreos.com", "keda.sh")]
    assert ours
    for version in KUBERNETES:
        for manifest in ours:
            assert schemas.validate(manifest, version, strict=True) == version


def test_every_custom_resource_is_what_its_operator_takes(manifests: list[Manifest]) -> None:
    operator = pytest.importorskip("cloudcoil.models.prometheus_operator.v1", reason="the operators' schemas are not installed: make chart-check")
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1", reason="the operators' schemas are not installed: make chart-check")
    for manifest in manifests:
        group = manifest["apiVersion"].split("/")[0]
        if group in ("monitoring.coreos.com", "keda.sh"):
            model = getattr(operator if group == "monitoring.coreos.com" else keda, manifest["kind"])
            # A field that the schema does not know is dropped by it, and is missing afterwards.
            assert model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest


@pytest.mark.parametrize("name", VALUES)
def test_helm_has_nothing_to_complain_of(name: str) -> None:
    helm = pytest.importorskip("helm_python", reason="Helm's library is not installed: make chart-check")
    found = helm.lint(CHART, VALUES[name], strict=True, namespace=NAMESPACE)
    assert found["errors"] == []
    assert {message["error"] for message in found["messages"]} <= {"icon is recommended"}


def test_names_are_different_and_every_selector_finds_its_pods(manifests: list[Manifest]) -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in manifests]
    assert len(set(names)) == len(names)
    labels = [template["metadata"]["labels"] for _, template, _ in pods(manifests)]
    services = [service["metadata"]["labels"] for service in kinds(manifests, "Service")]
    for kind, among, at in (
        ("Service", labels, lambda spec: spec["selector"]),
        ("Deployment", labels, lambda spec: spec["selector"]["matchLabels"]),
        ("PodDisruptionBudget", labels, lambda spec: spec["selector"]["matchLabels"]),
        ("NetworkPolicy", labels, lambda spec: spec["podSelector"]["matchLabels"]),
        ("PodMonitor", labels, lambda spec: spec["selector"]["matchLabels"]),
        # Once: the other Service has the same pods, and would have each of them asked twice.
        ("ServiceMonitor", services, lambda spec: spec["selector"]["matchLabels"]),
    ):
        for found in kinds(manifests, kind):
            assert sum(at(found["spec"]).items() <= one.items() for one in among) == 1, found["metadata"]


def test_the_sidecar_is_told_what_it_understands(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    for part, _, container in pods(manifests):
        if part == "sidecar":
            for name in [name for name in os.environ if name.startswith("NV_EMBED_SIDECAR_")]:
                monkeypatch.delenv(name)
            said = {name: value for name, value in environment(container).items() if name.startswith("NV_EMBED_SIDECAR_")}
            assert {name.removeprefix("NV_EMBED_SIDECAR_").lower() for name in said} <= set(Settings.model_fields)
            for name, value in said.items():
                monkeypatch.setenv(name, value)
            settings = Settings()
            assert settings.listen[0].rpartition(":")[2] == port(container, "grpc")
            assert [address.rpartition(":")[2] for address in settings.http] == [port(container, "http")]
            assert str(settings.ready_file) in DOCKERFILE


def test_options_arrive_as_they_were_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = (container for part, _, container in pods(known("gpu")) if part == "sidecar")
    for name, value in environment(container).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.precision, settings.max_queue_texts, settings.hang_s, settings.dims) == ("bf16", 1_000_000, 2.5, (256, 128))
    assert (settings.bidirectional, settings.log_format, settings.device, settings.drain_s) == (True, "text", "cuda", 30)


def test_the_worker_is_told_what_it_understands(manifests: list[Manifest]) -> None:
    worker = typer.main.get_command(app).commands["worker"]  # type: ignore[attr-defined]
    for part, _, container in pods(manifests):
        if part == "worker":
            parsed = worker.make_context("worker", [*container["args"], "--database-url", URL]).params
            assert parsed["metrics"].rpartition(":")[2] == port(container, "metrics")
            assert parsed["endpoint"]
            variables = {parameter.envvar for parameter in worker.params} | {"NV_EMBED_DATABASE_PASSWORD_FILE"}
            assert set(environment(container)) <= variables
    assert "NV_EMBED_DATABASE_PASSWORD_FILE" in (DOCKER / "worker-entrypoint").read_text()


def port(container: Manifest, name: str) -> str:
    (found,) = (entry["containerPort"] for entry in container["ports"] if entry["name"] == name)
    return str(found)


def test_every_port_that_is_named_is_one_of_the_pods(manifests: list[Manifest]) -> None:
    ports = {part: {entry["name"]: entry["containerPort"] for entry in container["ports"]} for part, _, container in pods(manifests)}
    for part, _, container in pods(manifests):
        for probe in probes(container):
            for way in ("httpGet", "tcpSocket"):
                assert probe.get(way, {}).get("port", next(iter(ports[part]))) in ports[part]
    for service in kinds(manifests, "Service"):
        for entry in service["spec"]["ports"]:
            assert entry["port"] == ports["sidecar"][entry["targetPort"]]
    for policy in kinds(manifests, "NetworkPolicy"):
        part = policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        assert {entry["port"] for rule in policy["spec"].get("ingress", []) for entry in rule["ports"]} <= set(ports[part])
    for monitor in kinds(manifests, "PodMonitor"):
        assert {entry["port"] for entry in monitor["spec"]["podMetricsEndpoints"]} == {"metrics"}
    offered = {entry["name"] for service in kinds(manifests, "Service") for entry in service["spec"]["ports"]}
    for monitor in kinds(manifests, "ServiceMonitor"):
        assert {entry["port"] for entry in monitor["spec"]["endpoints"]} <= offered


def test_whoever_is_told_to_ask_for_metrics_is_let_in(manifests: list[Manifest]) -> None:
    asked = {monitor["metadata"]["name"] for kind in ("ServiceMonitor", "PodMonitor") for monitor in kinds(manifests, kind)}
    for policy in kinds(manifests, "NetworkPolicy"):
        peers = [peer for rule in policy["spec"].get("ingress", []) for peer in rule["from"]]
        assert (PROMETHEUS in peers) is (policy["metadata"]["name"] in asked)


def test_a_worker_asks_the_service_that_has_an_address_for_each_sidecar() -> None:
    manifests = known("cpu")
    (peers,) = (service for service in kinds(manifests, "Service") if service["spec"].get("clusterIP") == "None")
    (container,) = (container for part, _, container in pods(manifests) if part == "worker")
    assert f"--endpoint={peers['metadata']['name']}.{NAMESPACE}.svc:50051" in container["args"]


def test_a_pod_is_given_longer_to_end_than_it_takes(manifests: list[Manifest]) -> None:
    for part, template, container in pods(manifests):
        grace = template["spec"]["terminationGracePeriodSeconds"]
        if part == "sidecar":
            waits = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
            assert grace > waits + float(environment(container)["NV_EMBED_SIDECAR_DRAIN_S"])
        else:
            (timeout,) = (argument.partition("=")[2] for argument in container["args"] if argument.startswith("--timeout="))
            assert grace > float(timeout)


def test_a_pod_has_no_privileges_and_a_root_that_it_cannot_write_to(manifests: list[Manifest]) -> None:
    for account in kinds(manifests, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for _, template, container in pods(manifests):
        spec, pod = template["spec"], template["spec"]["securityContext"]
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert f"USER {pod['runAsUser']}:{pod['runAsGroup']}\n" in DOCKERFILE
        assert pod["runAsNonRoot"] is True
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert set(container["resources"]) == {"requests", "limits"}


def test_what_a_pod_writes_has_a_volume_and_secrets_are_files_or_named(manifests: list[Manifest]) -> None:
    for part, template, container in pods(manifests):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} == set(volumes)
        written = {path for path, mount in mounts.items() if "emptyDir" in volumes[mount["name"]]}
        assert written == ({"/tmp", "/run/nv_embed", "/var/lib/nv_embed"} if part == "sidecar" else {"/tmp"})
        for mount in mounts.values():
            if "secret" in volumes[mount["name"]]:
                assert mount["readOnly"] is True
                assert "subPath" not in mount, "it would not follow when the Secret changes"
                # Neither group nor others may write the file of tokens: nv_embed/tokens.py.
                assert volumes[mount["name"]]["secret"]["defaultMode"] == 0o440
        files = [value for value in environment(container).values() if value.startswith("/etc/nv_embed/")]
        assert {str(Path(file).parent) for file in files} <= set(mounts)


def test_probes_ask_what_the_image_has_and_a_client_certificate_is_not_needed(manifests: list[Manifest]) -> None:
    for _, _, container in pods(manifests):
        schemes = {probe["httpGet"]["scheme"] for probe in probes(container) if "httpGet" in probe}
        variables = environment(container)
        assert schemes <= {"HTTPS" if "NV_EMBED_SIDECAR_TLS_CERT" in variables else "HTTP"}
        assert not schemes or "NV_EMBED_SIDECAR_TLS_CLIENT_CA" not in variables
        for probe in probes(container):
            if "exec" in probe:
                program, *_ = probe["exec"]["command"]
                assert Path(program).parent == Path("/usr/local/bin")
                assert f"docker/{Path(program).name}" in DOCKERFILE


@pytest.mark.parametrize(("name", "gpus", "tag"), [("cpu", None, ""), ("gpu", 1, "-cuda")])
def test_a_gpu_is_asked_for_where_it_is_said(name: str, gpus: int | None, tag: str) -> None:
    (container,) = (container for part, _, container in pods(known(name)) if part == "sidecar")
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert container["image"].endswith(f"nv_embed-sidecar:{nv_embed.__version__}{tag}")


def test_rules_go_by_the_jobs_that_the_monitors_make() -> None:
    manifests = known("gpu")
    made = {rule["metadata"]["name"]: rule["spec"] for rule in kinds(manifests, "PrometheusRule")}
    read = {file.stem: yaml.safe_load(file.read_text()) for file in (DOCKER / "prometheus" / "rules").iterdir()}
    assert made == {f"{RELEASE}-nv-embed-{name}": spec for name, spec in read.items()}
    jobs = set()
    for kind in ("ServiceMonitor", "PodMonitor"):
        (monitor,) = kinds(manifests, kind)
        assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/component"
        jobs.add(monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"])
    assert set(re.findall(r'job="(\w+)"', json.dumps(made).replace("\\", ""))) == jobs
    assert set(re.findall(r'job="(\w+)"', json.dumps(kinds(manifests, "ScaledObject")).replace("\\", ""))) == jobs


def test_nobody_is_alarmed_for_a_part_that_is_not_installed(manifests: list[Manifest]) -> None:
    watches = {"sidecar": "sidecar", "worker": "database"}
    rules = {rule["spec"]["groups"][0]["name"] for rule in kinds(manifests, "PrometheusRule")}
    assert rules in (set(), {watches[part] for part, _, _ in pods(manifests)})


def test_a_sidecar_that_makes_a_model_anew_is_not_ended(manifests: list[Manifest]) -> None:
    for part, _, container in pods(manifests):
        if part == "sidecar":
            probe = container["livenessProbe"]
            assert probe.get("httpGet", {}).get("path") == "/v1/health/live" or probe["exec"]["command"][1:] == ["--live"]


def test_dashboards_are_handed_to_grafana_as_they_are() -> None:
    (config,) = kinds(known("gpu"), "ConfigMap")
    assert {name: json.loads(text) for name, text in config["data"].items()} == {
        file.name: json.loads(file.read_text()) for file in (DOCKER / "grafana" / "dashboards").iterdir()
    }


def test_sidecars_are_scaled_by_how_long_requests_and_rows_wait() -> None:
    (scaler,) = kinds(known("mutual tls, hpa"), "HorizontalPodAutoscaler")
    queue, lag = [metric["pods"] for metric in scaler["spec"]["metrics"] if "pods" in metric], scaler["spec"]["metrics"][-1]["external"]
    found = {metric["metric"]["selector"]["matchLabels"]["priority"]: metric["target"]["averageValue"] for metric in queue}
    assert found == {"interactive": "250m", "bulk": "30000m"}
    assert (lag["metric"]["name"], lag["target"]["value"]) == ("nv_embed_oldest_pending_seconds", "300000m")
    (scaled,) = kinds(known("gpu"), "ScaledObject")
    assert {trigger["name"]: trigger["metadata"]["threshold"] for trigger in scaled["spec"]["triggers"]} == {
        "bulk": "30",
        "interactive": "0.5",
        "lag": "120",
    }
    # What scales and what is told both would undo each other.
    for name, is_said in (("cpu", True), ("gpu", False)):
        (deployment,) = (found for found in kinds(known(name), "Deployment") if found["metadata"]["name"].endswith("-sidecar"))
        assert ("replicas" in deployment["spec"]) is is_said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "worker.database.url or worker.database.urlSecret.name is needed"),
        ({"worker": {"database": {"url": "postgresql://nv_embedder:secret@db/app"}}}, "does not match pattern"),
        ({"sidecar": {"replica": 2}}, "replica"),
        ({"sidecar": {"options": {"listen": "0.0.0.0:1"}}}, "listen"),
        ({"sidecar": {"enabled": False}, "worker": {"database": {"url": URL}}}, "worker.endpoints is needed"),
        ({"sidecar": {"tokens": {"existingSecret": "t"}}, "worker": {"database": {"url": URL}}}, "the worker has no token"),
        ({"sidecar": {"tls": {"existingSecret": "t"}}, "worker": {"database": {"url": URL}}}, "the worker knows no authority"),
        ({"worker": {"database": {"url": URL}, "token": {"existingSecret": "t"}}}, "worker.token.withoutTls"),
        ({"worker": {"database": {"url": URL}}, "sidecar": {"autoscaling": {"kind": "keda"}}}, "prometheusUrl is needed"),
        ({"worker": {"database": {"url": URL}}, "sidecar": {"ui": {"enabled": True, "databaseSecret": {"name": "d"}}}}, "would show rows to anybody"),
        (
            {"worker": {"database": {"url": URL}}, "sidecar": {"autoscaling": {"kind": "hpa", "interactiveSeconds": None, "bulkSeconds": None}}},
            "has nothing to go by",
        ),
        (
            {"worker": {"enabled": False}, "sidecar": {"tokens": {"existingSecret": "t"}}, "monitoring": {"serviceMonitor": {"enabled": True}}},
            "Prometheus has no token",
        ),
        ({"worker": {"database": {"url": URL}}, "monitoring": {"serviceMonitor": {"enabled": True}}}, "give networkPolicy.monitoring"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(values: dict[str, Any], said: str) -> None:
    helm = pytest.importorskip("helm_python", reason="Helm's library is not installed: make chart-check")
    with pytest.raises(helm.HelmError, match=re.escape(said)):
        rendered(values)
