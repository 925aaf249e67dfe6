"""The image, the compose file, the unit and the manifests fit each other, the settings and the server."""

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.tools import program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
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


def test_kustomize_builds_the_manifests() -> None:
    command = [program("kubectl"), "kustomize", str(KUBERNETES)]
    built = subprocess.run(command, text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    found = documents(built.stdout)
    assert {resource["kind"] for resource in found} == {each["kind"] for each in resources()} | {"ConfigMap"}
    for resource in found:
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "saegis"


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_the_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    """Those of its own kinds: that of the pod monitor is the Prometheus operator's."""
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    files = [str(KUBERNETES / name) for name in listed if name != "podmonitor.yaml"]
    command = [program("kubernetes-validate"), "--strict", "--kubernetes-version", version, *files]
    validated = subprocess.run(command, text=True, capture_output=True)
    assert (validated.returncode, validated.stdout.count(" passed ")) == (0, len(resources()) - 1)


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    # It looks for the program, which is not installed here.
    (served,) = re.findall(r"^ExecStart=(\S+)", UNIT.read_text(), re.MULTILINE)
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(f"={served}", f"={sys.executable}"))
    command = [program("systemd-analyze"), "verify", str(tmp_path / UNIT.name)]
    verified = subprocess.run(command, text=True, capture_output=True)
    assert (verified.returncode, UNIT.name in verified.stderr) == (0, False), verified.stderr
