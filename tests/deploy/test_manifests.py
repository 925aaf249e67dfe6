"""The image, the compose file, the unit and the manifests fit each other, the settings and the server."""

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from saegis_server.engine.api import EngineStats
from saegis_server.telemetry.metrics import Metrics
from tests.tools import program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes" / "base"
OVERLAYS = DEPLOY / "kubernetes" / "overlays"
#: What `kubectl apply -k` is given: the base by its usual name, and the overlays.
BUILT = [DEPLOY / "kubernetes", *sorted(path.parent for path in OVERLAYS.glob("*/kustomization.yaml"))]
#: Of the Prometheus operator, whose schema is its own.
FOREIGN = "PodMonitor"
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()
UNIT = DEPLOY / "systemd" / "saegis.service"
KEYS_OF_PATHS = ("identities", "tls-cert", "tls-key", "policy", "policy-state", "audit")


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def resources() -> list[dict[str, Any]]:
    """What kustomization.yaml names."""
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [document for name in listed for document in documents((KUBERNETES / name).read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [resource for resource in resources() if resource["kind"] == kind]


def pod() -> dict[str, Any]:
    (replicas,) = of_kind("StatefulSet")
    template: dict[str, Any] = replicas["spec"]["template"]
    return template


def paths(settings: dict[str, Any]) -> list[str]:
    """The files and folders that settings name."""
    found = [settings[key] for key in KEYS_OF_PATHS if key in settings]
    return [path for value in found for path in (value if isinstance(value, list) else [value])]


def switched_on(text: str) -> str:
    """Settings with those over HTTP, which lie there commented out."""
    return re.sub(r"^# (http-\w+: )", r"\1", text, flags=re.MULTILINE)


def lies_in(path: str, folders: list[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


def test_the_image_copies_what_is_there_and_not_ignored() -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert all((ROOT / path).exists() for path in let_through)
    copied = re.findall(r"^COPY (?!--from|\.)(\S+) \S+$", DOCKERFILE, re.MULTILINE)
    assert set(copied) <= let_through
    assert "deploy/server.yaml" in copied
    # The client's distribution carries the contract.
    assert {"protos", "clients/python", "server", "lab"} <= let_through


def test_the_image_runs_as_nobody_and_writes_to_volumes_alone() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert int(user) == pod()["spec"]["securityContext"]["runAsUser"] > 0
    (volumes,) = re.findall(r"^VOLUME (\[.*\])$", DOCKERFILE, re.MULTILINE)
    settings = yaml.safe_load((DEPLOY / "server.yaml").read_text())
    written = [settings["policy-state"], settings["audit"]]
    (cache,) = re.findall(r"SAEGIS_COMPILE_CACHE=(\S+)", DOCKERFILE)
    for path in (*written, cache):
        assert lies_in(path, yaml.safe_load(volumes)), path


def test_compose_mounts_what_is_there_and_hardens_everything() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            # The operator makes the file of identities.
            there = source in compose["volumes"] or (DEPLOY / "compose" / source).resolve().exists()
            assert there or source == "./identities.yaml", volume
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["static_configs"][0]["targets"] == ["saegis:9464"]
    sources = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    assert yaml.safe_load(sources.read_text())["datasources"][0]["url"] == "http://prometheus:9090"
    assert {"saegis", "prometheus"} <= set(compose["services"])


def test_the_replicas_are_hardened_and_have_room_for_what_they_write() -> None:
    spec = pod()["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (replicas,) = of_kind("StatefulSet")
    volumes = {volume["name"] for volume in spec["volumes"]} | {
        claim["metadata"]["name"] for claim in replicas["spec"]["volumeClaimTemplates"]
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    settings = yaml.safe_load((KUBERNETES / "server.yaml").read_text())
    in_image = "/etc/saegis/policies"
    assert f"COPY deploy/policies {in_image}\n" in DOCKERFILE
    for path in (*paths(settings), container["args"][-1], "/var/cache/saegis", "/tmp"):  # noqa: S108
        assert lies_in(path, [*mounted, in_image]), path
    assert not lies_in(in_image, mounted)
    assert spec["terminationGracePeriodSeconds"] > settings["grace"]


def test_ports_probes_and_selectors_name_what_is_there() -> None:
    template = pod()
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 50051, "metrics": 9464, "http": 8000}
    probes = {
        name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    assert probes["livenessProbe"]["path"] == "/healthz"
    assert probes["readinessProbe"]["path"] == probes["startupProbe"]["path"] == "/readyz"
    labels = template["metadata"]["labels"].items()
    (replicas,), (monitor,) = of_kind("StatefulSet"), of_kind("PodMonitor")
    (policy,), (budget,) = of_kind("NetworkPolicy"), of_kind("PodDisruptionBudget")
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind("Service")}
    for selector in (
        *(service["selector"] for service in services.values()),
        replicas["spec"]["selector"]["matchLabels"],
        monitor["spec"]["selector"]["matchLabels"],
        budget["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels
    assert services[replicas["spec"]["serviceName"]]["clusterIP"] == "None"
    assert template["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "saegis"
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert opened == set(ports)


@pytest.mark.parametrize(
    "file", [DEPLOY / "server.yaml", KUBERNETES / "server.yaml"], ids=["image", "cluster"]
)
def test_the_port_over_http_is_that_of_the_settings_which_are_off_until_they_are_wanted(file: Path) -> None:
    text = file.read_text()
    assert not {"http-port", "http-host", "console"} & yaml.safe_load(text).keys()
    wanted = yaml.safe_load(switched_on(text))
    assert wanted["http-host"] == "0.0.0.0"  # noqa: S104 - in a container of its own
    (container,) = pod()["spec"]["containers"]
    (port,) = [each["containerPort"] for each in container["ports"] if each["name"] == "http"]
    (service,) = [each for each in of_kind("Service") if each["metadata"]["name"] == "saegis"]
    (offered,) = [each for each in service["spec"]["ports"] if each["name"] == "http"]
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    published = compose["services"]["saegis"]["ports"]
    (exposed,) = re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert wanted["http-port"] == port == offered["port"]
    assert offered["targetPort"] == "http"
    assert f"127.0.0.1:{port}:{port}" in published
    assert str(port) in exposed.split()


def built(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder."""
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def one(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only resource of a kind."""
    (resource,) = (each for each in found if each["kind"] == kind)
    return resource


@pytest.mark.parametrize("folder", BUILT, ids=lambda folder: folder.name)
def test_kustomize_builds_the_manifests(folder: Path) -> None:
    found = built(folder)
    own = {"HorizontalPodAutoscaler"} if folder.name == "autoscaled" else set()
    assert {each["kind"] for each in found} == {each["kind"] for each in resources()} | {"ConfigMap"} | own
    for resource in found:
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "saegis"
    (volume,) = (
        each
        for each in one(found, "StatefulSet")["spec"]["template"]["spec"]["volumes"]
        if "configMap" in each
    )
    assert volume["configMap"]["name"] == one(found, "ConfigMap")["metadata"]["name"]


def test_the_autoscaler_reads_a_metric_that_there_is_and_owns_the_number_of_replicas() -> None:
    found = built(OVERLAYS / "autoscaled")
    replicas, scaler = one(found, "StatefulSet"), one(found, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in replicas["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": replicas["apiVersion"],
        "kind": replicas["kind"],
        "name": replicas["metadata"]["name"],
    }
    assert scaler["minReplicas"] > one(found, "PodDisruptionBudget")["spec"]["maxUnavailable"]
    (metric,) = (each["pods"]["metric"]["name"] for each in scaler["metrics"])
    rules = yaml.safe_load((OVERLAYS / "autoscaled" / "adapter.yaml").read_text())
    assert [rule["name"]["as"] for rule in rules] == [metric]
    assert all(rule["seriesQuery"].startswith(f"{metric}{{") for rule in rules)
    metrics = Metrics()
    metrics.observe_load(lambda: EngineStats(0, 0, 0, 1, 0.0, 16, 64, 0))
    assert metric in {family.name for family in metrics.registry.collect()}
    down = scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
    assert down > replicas["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # What a replica kept stays when it is scaled away: its audit log is nowhere else.
    assert set(replicas["spec"]["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}


def test_the_overlay_of_gpus_differs_by_its_device_alone() -> None:
    found = built(OVERLAYS / "gpu")
    settings = yaml.safe_load(one(found, "ConfigMap")["data"]["server.yaml"])
    assert settings.pop("device") == "cuda"
    assert settings == yaml.safe_load((KUBERNETES / "server.yaml").read_text())
    (container,) = one(found, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (base,) = pod()["spec"]["containers"]
    assert {**container, "resources": None} == {**base, "resources": None, "image": container["image"]}


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize("folder", BUILT, ids=lambda folder: folder.name)
def test_the_manifests_fit_the_schemas_of_kubernetes(folder: Path, version: str, tmp_path: Path) -> None:
    """Those of its own kinds: that of the pod monitor is the Prometheus operator's."""
    found = [each for each in built(folder) if each["kind"] != FOREIGN]
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all(found))
    command = [program("kubernetes-validate"), "--strict", "--kubernetes-version", version, str(file)]
    validated = subprocess.run(command, text=True, capture_output=True)
    told = validated.stdout + validated.stderr
    assert (validated.returncode, validated.stdout.count(" passed ")) == (0, len(found)), told


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    # It looks for the program, which is not installed here.
    (served,) = re.findall(r"^ExecStart=(\S+)", UNIT.read_text(), re.MULTILINE)
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(f"={served}", f"={sys.executable}"))
    command = [program("systemd-analyze"), "verify", str(tmp_path / UNIT.name)]
    verified = subprocess.run(command, text=True, capture_output=True)
    assert (verified.returncode, UNIT.name in verified.stderr) == (0, False), verified.stderr
