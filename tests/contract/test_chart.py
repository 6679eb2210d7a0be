"""The chart, rendered by the real Helm: every object is valid Kubernetes, every variable is a setting.

The second half is needed, for `extra="forbid"` does not notice a misspelt environment variable.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from services.billing.settings import BillingSettings
from services.common.settings import ServiceSettings, host_port
from services.inference.settings import InferenceSettings
from services.ingest.settings import IngestSettings
from services.router.settings import RouterSettings
from services.session_manager.settings import SessionManagerSettings

Object = dict[str, Any]

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "sluice"
NATS: Final = {"nats": {"url": "nats://nats.nats:4222"}}
POD_IP: Final = "10.1.2.3"
NODE_IP: Final = "203.0.113.9"
SETTINGS: Final[dict[str, type[ServiceSettings]]] = {
    "ingest": IngestSettings,
    "router": RouterSettings,
    "session-manager": SessionManagerSettings,
    "billing": BillingSettings,
    "inference": InferenceSettings,
}
KEYS: Final = {component: component for component in SETTINGS} | {"session-manager": "sessionManager"}
EDGES: Final = {
    ("ingest", "router", 7001),
    ("ingest", "session-manager", 7002),
    ("ingest", "billing", 7003),
    ("session-manager", "router", 7001),
    ("session-manager", "billing", 7003),
    ("session-manager", "ingest", 7000),  # Bridge, at the pod's own address
    ("session-manager", "inference", 7004),  # Runner, likewise
    ("inference", "ingest", 8001),  # trickle, likewise
    ("inference", "session-manager", 7002),  # a runner that leaves
    ("ingest", "ingest", 8000),  # signalling of a session that another pod has
}
EVERYTHING: Final[Object] = {
    "image": {"registry": "registry.example.com/sluice", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
    "nats": {"url": "tls://user:password@nats.example.com", "replicas": 3},
    "secret": {"existingSecret": "mine"},
    "telemetry": {
        "otlpEndpoint": "http://collector.observability:4317",
        "tracesUrl": "http://jaeger.observability:16686",
    },
    "serviceAccount": {"annotations": {"a": "b"}},
    "networkPolicy": {
        "publicPeers": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
        "natsPeers": [{"ipBlock": {"cidr": "198.51.100.7/32"}}],
        "otlpPeers": [{"namespaceSelector": {"matchLabels": {"name": "observability"}}}],
        "tracesPeers": [{"podSelector": {"matchLabels": {"app": "jaeger"}}}],
    },
    "ingest": {
        "replicas": 2,
        "settings": {"first_picture_s": 20, "public_url": "https://video.example.com"},
        "service": {"type": "LoadBalancer", "annotations": {"cloud": "yes"}},
        "podAnnotations": {"team": "video"},
        "nodeSelector": {"pool": "edge"},
        "tolerations": [{"key": "edge", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
    },
    "billing": {
        "persistence": {"existingClaim": "ledger"},
        "settings": {"prices": {"*": {"micro_per_second": 2000, "hold_micro_per_second": 5}}},
    },
    "inference": {
        "replicas": 3,
        "image": {"digest": f"sha256:{'0' * 64}"},
        "settings": {"labels": {"rack": "7"}, "slots": 2},
        "gpu": {"resource": "nvidia.com/mig-1g.10gb", "count": 2, "runtimeClassName": "nvidia"},
        "rollout": {"maxSurge": 0, "maxUnavailable": "25%"},
        "models": {"existingClaim": "weights", "fetch": ["stabilityai/sd-turbo"]},
        "extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
    },
}
WITHOUT_GPU: Final[Object] = NATS | {"inference": {"gpu": {"count": 0}}, "networkPolicy": {"enabled": False}}


@pytest.fixture(scope="module")
def chart() -> Iterator[helm.Chart]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def objects(chart: helm.Chart) -> list[Object]:
    return render(chart)


def render(chart: helm.Chart, values: Object | None = None, *, release: str = "demo") -> list[Object]:
    rendered = chart.render({**NATS, **(values or {})}, name=release, namespace="video")
    return [
        found
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for found in yaml.safe_load_all(text)
        if found
    ]


def of_kind(objects: Iterable[Object], kind: str) -> dict[str, Object]:
    """The objects of a kind by their component, "" for what belongs to all."""
    return {
        found["metadata"]["labels"].get("app.kubernetes.io/component", ""): found
        for found in objects
        if found["kind"] == kind
    }


def pods(objects: Iterable[Object]) -> dict[str, Object]:
    """The pods' specifications by component."""
    found = {name: each["spec"]["template"]["spec"] for name, each in of_kind(objects, "Deployment").items()}
    assert found.keys() == SETTINGS.keys()
    return found


def container(pod: Object) -> Object:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


def port_named(pod: Object, name: object) -> int:
    (port,) = (each["containerPort"] for each in container(pod)["ports"] if each["name"] == name)
    return int(port)


def environment(objects: Iterable[Object], component: str) -> dict[str, str]:
    """The variables as the kubelet would resolve them; what an optional, absent key would set is left out."""
    secret = of_kind(objects, "Secret").get("", {"data": {}})["data"]
    found: dict[str, str] = {}
    for variable in container(pods(objects)[component])["env"]:
        name, source = variable["name"], variable.get("valueFrom", {})
        assert name not in found, f"{component} sets {name} twice"
        if "fieldRef" in source:
            paths = {
                "metadata.name": f"demo-sluice-{component}-abc",
                "status.podIP": POD_IP,
                "status.hostIP": NODE_IP,
            }
            found[name] = paths[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            data = secret.get(source["secretKeyRef"]["key"])
            if data is None:
                assert source["secretKeyRef"]["optional"], name
                continue
            found[name] = base64.b64decode(data).decode()
        else:
            found[name] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable["value"])
    return found


def sluice_names(objects: Iterable[Object], component: str) -> set[str]:
    variables = container(pods(objects)[component])["env"]
    return {each["name"] for each in variables if each["name"].startswith("SLUICE_")}


def variables_of(settings: type[ServiceSettings], fields: Iterable[str] | None = None) -> set[str]:
    names = settings.model_fields if fields is None else fields
    return {f"{settings.model_config.get('env_prefix')}{name.upper()}" for name in names}


def unknown_variables(objects: Iterable[Object]) -> set[str]:
    """`SLUICE_*` variables that no setting of their pod's service would read."""
    rendered = list(objects)
    return {
        name
        for component, settings in SETTINGS.items()
        for name in sluice_names(rendered, component) - variables_of(settings)
    }


def left_to_the_chart(settings: type[ServiceSettings]) -> set[str]:
    """The fields whose default is of no use in a cluster, as the field itself shows."""
    found = set()
    for name, field in settings.model_fields.items():
        default = field.default
        if field.is_required():
            found.add(name)
        elif isinstance(default, str):
            path = PurePosixPath(default.removeprefix("sqlite:///"))
            relative_file = path.suffix != "" and not path.is_absolute()
            about_the_pod = default == "" and re.search(r"\bpod\b|as listened", field.description or "")
            if "127.0.0.1" in default or relative_file or about_the_pod:
                found.add(name)
    return found


def test_lint_has_nothing_to_say() -> None:
    report = helm.lint(CHART, NATS, strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


def test_without_nats_it_says_what_is_missing(chart: helm.Chart) -> None:
    for values in ({}, {"nats": {"url": ""}}):
        with pytest.raises(helm.HelmRenderError, match=r"nats\.url is empty: name a NATS.*nats\.url=nats://"):
            chart.render(values, name="demo")


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("values", [{}, EVERYTHING, WITHOUT_GPU], ids=["default", "everything", "no-gpu"])
def test_every_object_is_valid_kubernetes(chart: helm.Chart, values: Object, version: str) -> None:
    objects = render(chart, values)
    assert len(objects) >= 15
    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)


def test_an_invalid_object_would_be_noticed(objects: list[Object]) -> None:
    broken = of_kind(objects, "Deployment")["router"] | {"spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


@pytest.mark.parametrize("values", [{}, EVERYTHING, WITHOUT_GPU], ids=["default", "everything", "no-gpu"])
def test_every_variable_is_a_setting_of_its_service(chart: helm.Chart, values: Object) -> None:
    assert unknown_variables(render(chart, values)) == set()


@pytest.mark.parametrize("component", SETTINGS)
def test_a_misspelt_setting_is_found(chart: helm.Chart, component: str) -> None:
    objects = render(chart, {KEYS[component]: {"settings": {"metrics_lisen": "0.0.0.0:1"}}})
    assert unknown_variables(objects) == variables_of(SETTINGS[component], ["metrics_lisen"])


def test_what_is_left_to_the_chart_is_derived_from_the_settings() -> None:
    everywhere = {"nats_url", "metrics_listen", "instance", "listen"}
    assert all(left_to_the_chart(settings) >= everywhere for settings in SETTINGS.values())
    assert left_to_the_chart(IngestSettings) >= {
        *("stream_secret", "outbox_path", "trickle_listen", "trickle_url", "bridge_listen", "bridge_address"),
        *("router_address", "session_manager_address", "billing_address"),
    }
    assert left_to_the_chart(BillingSettings) >= {"database_url"}
    assert left_to_the_chart(InferenceSettings) >= {"address", "runner"}
    assert not left_to_the_chart(IngestSettings) & {"public_url", "otlp_endpoint", "default_pipeline"}


@pytest.mark.parametrize("component", SETTINGS)
def test_no_default_that_is_useless_in_a_cluster_remains(objects: list[Object], component: str) -> None:
    settings = SETTINGS[component]
    assert variables_of(settings, left_to_the_chart(settings)) <= sluice_names(objects, component)


@pytest.mark.parametrize("component", SETTINGS)
def test_a_service_accepts_its_environment(
    objects: list[Object], component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(objects, component).items():
        monkeypatch.setenv(name, value)
    settings = SETTINGS[component]()
    for name, value in settings.model_dump(mode="python").items():
        assert "127.0.0.1" not in str(value), name
        if (name == "listen" or name.endswith("_listen")) and value:  # an empty one is not served
            assert host_port(value)[0] == "0.0.0.0", name
    assert settings.instance == f"demo-sluice-{component}-abc"


def test_settings_arrive_as_they_were_written(chart: helm.Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = {"*": {"micro_per_second": 12_345_678, "hold_micro_per_second": 0}}
    values = {
        "ingest": {"settings": {"first_picture_s": 10.5, "max_sessions": 10_000_000, "log_level": "debug"}},
        "billing": {"settings": {"prices": prices, "currency": "EUR"}},
    }
    objects = render(chart, values)
    for component in ("ingest", "billing"):
        for name, value in environment(objects, component).items():
            monkeypatch.setenv(name, value)
    ingest, billing = IngestSettings(), BillingSettings()
    assert (ingest.first_picture_s, ingest.max_sessions) == (10.5, 10_000_000)
    assert (ingest.log_level, billing.log_level) == ("debug", "info")
    assert billing.model_dump()["prices"] == prices
    assert billing.currency == "EUR"


@pytest.mark.parametrize(
    ("component", "field"),
    [
        ("ingest", "listen"),
        ("ingest", "stream_secret"),
        ("router", "nats_url"),
        ("session-manager", "router_address"),
        ("billing", "database_url"),
        ("billing", "key_pepper"),
        ("inference", "address"),
    ],
)
def test_what_the_chart_sets_itself_cannot_be_set(chart: helm.Chart, component: str, field: str) -> None:
    key = KEYS[component]
    with pytest.raises(helm.HelmRenderError, match=rf"{key}\.settings\.{field} is set by the chart itself"):
        render(chart, {key: {"settings": {field: "x"}}})


def test_pods_announce_their_own_addresses(objects: list[Object]) -> None:
    ingest, runner = environment(objects, "ingest"), environment(objects, "inference")
    assert ingest["SLUICE_INGEST_BRIDGE_ADDRESS"] == f"{POD_IP}:7000"
    assert ingest["SLUICE_INGEST_TRICKLE_URL"] == f"http://{POD_IP}:8001"
    assert runner["SLUICE_INFERENCE_ADDRESS"] == f"{POD_IP}:7004"


def test_listens_are_the_ports_of_the_container(objects: list[Object]) -> None:
    for component, pod in pods(objects).items():
        listens = {
            host_port(value)[1]
            for name, value in environment(objects, component).items()
            if name.endswith("LISTEN")
        }
        assert listens == {each["containerPort"] for each in container(pod)["ports"]}


def test_addresses_name_headless_services_whose_pods_listen_there(objects: list[Object]) -> None:
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Service").values()}
    seen = set()
    for component in SETTINGS:
        for name, value in environment(objects, component).items():
            ours = name.endswith("_ADDRESS") and "WEBRTC" not in name  # that one is for clients
            host, port = host_port(value) if ours else ("", 0)
            if host not in {"", POD_IP}:
                service = services[host]
                target = service["selector"]["app.kubernetes.io/component"]
                assert service["clusterIP"] == "None"
                assert [each["port"] for each in service["ports"]] == [port]
                assert port_named(pods(objects)[target], service["ports"][0]["targetPort"]) == port
                seen.add((component, target, port))
    assert seen == {
        (source, target, port) for source, target, port in EDGES if target not in {"ingest", "inference"}
    }


def test_the_public_service_reaches_ingest_by_http_trickle_and_rtmp(objects: list[Object]) -> None:
    spec = of_kind(objects, "Service")["ingest"]["spec"]
    assert spec["type"] == "ClusterIP"
    pod = pods(objects)["ingest"]
    assert [port_named(pod, port["targetPort"]) for port in spec["ports"]] == [8000, 8002, 1935]


def test_selectors_match_the_pods_of_their_component_and_no_others(objects: list[Object]) -> None:
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"]
        for name, each in of_kind(objects, "Deployment").items()
    }
    selectors = 0
    for found in objects:
        spec, component = (
            found.get("spec", {}),
            found["metadata"]["labels"].get("app.kubernetes.io/component"),
        )
        for field in ("selector", "podSelector"):
            if field in spec:
                wanted = spec[field].get("matchLabels", spec[field])
                matched = {name for name, have in labels.items() if wanted.items() <= have.items()}
                assert matched == ({component} if component else set(labels)), found["metadata"]["name"]
                selectors += 1
    assert selectors == 5 + 4 + 4 + 6  # Deployments, Services, PodDisruptionBudgets, NetworkPolicies


def test_everything_carries_the_recommended_labels(objects: list[Object]) -> None:
    wanted = {
        f"app.kubernetes.io/{name}" for name in ("name", "instance", "version", "part-of", "managed-by")
    }
    for found in objects:
        assert wanted <= found["metadata"]["labels"].keys()
        assert found["metadata"]["namespace"] == "video"


def test_what_a_pod_names_exists(objects: list[Object]) -> None:
    names = {(found["kind"], found["metadata"]["name"]) for found in objects}
    assert len(names) == len(objects)
    for pod in pods(objects).values():
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        volumes = {each["name"] for each in pod["volumes"]}
        assert volumes == {each["name"] for each in container(pod)["volumeMounts"]}
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
        for variable in container(pod)["env"]:
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                assert ("Secret", reference["name"]) in names


def test_images_have_the_version_of_the_application_and_never_latest(chart: helm.Chart) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart.metadata["appVersion"] == version
    images = {name: container(pod)["image"] for name, pod in pods(render(chart)).items()}
    assert images == {name: f"sluice-{name}:{version}" for name in SETTINGS}
    pinned = container(pods(render(chart, EVERYTHING))["inference"])["image"]
    assert pinned == f"registry.example.com/sluice/sluice-inference:1.2.3@sha256:{'0' * 64}"
    rendered = "\n".join(chart.render(NATS, name="demo").values())
    assert "latest" not in rendered


def test_pods_are_restricted(objects: list[Object]) -> None:
    for pod in pods(objects).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False  # SLUICE_ROUTER_PORT would be one of them
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert min(context["runAsUser"], context["runAsGroup"], context["fsGroup"]) >= 10_000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "tmp", "mountPath": "/tmp"} in container(pod)["volumeMounts"]
        assert not any("hostPath" in volume for volume in pod["volumes"])


def test_containers_have_requests_and_limits(objects: list[Object]) -> None:
    for component, pod in pods(objects).items():
        requests, limits = container(pod)["resources"]["requests"], container(pod)["resources"]["limits"]
        assert requests["memory"] == limits["memory"]
        assert requests["cpu"]
        assert ("cpu" in limits) == (component not in {"ingest", "inference"})  # throttling is a stutter


def test_a_runner_has_a_gpu_and_shared_memory(chart: helm.Chart) -> None:
    pod = pods(render(chart))["inference"]
    resources = container(pod)["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert not {"runtimeClassName", "nodeSelector"} & pod.keys()
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}} in pod["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container(pod)["volumeMounts"]
    assert environment(render(chart), "inference")["SLUICE_INFERENCE_GPU_CLASS"] == "nvidia"

    mig = pods(render(chart, EVERYTHING))["inference"]
    assert container(mig)["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "2"
    assert mig["runtimeClassName"] == "nvidia"


CONTAINER: Final[Object] = {
    "image": "registry.example.com/paint:1",
    "capability": "paint",
    "port": 8123,
    "env": [{"name": "STYLE", "value": "oil"}],
    "runAsUser": 0,
    "livenessProbe": {"exec": {"command": ["sh", "-c", "true"]}},
}


def test_a_pool_can_run_somebody_else_s_container(chart: helm.Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render(chart, {"inference": {"container": CONTAINER}})
    for found in objects:
        kubernetes_validate.validate(found, "1.31", strict=True)
    pod = pods(objects)["inference"]
    ours = container(pod)
    (theirs,) = pod["initContainers"]
    assert theirs["restartPolicy"] == "Always"  # a sidecar, which ends after the runner has drained
    assert theirs["image"] == "registry.example.com/paint:1"
    assert {"name": "STYLE", "value": "oil"} in theirs["env"]
    assert theirs["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in ours["resources"]["limits"]
    assert theirs["securityContext"]["runAsNonRoot"] is False
    assert {"name": "shm", "mountPath": "/dev/shm"} in theirs["volumeMounts"]
    for name, value in environment(objects, "inference").items():
        monkeypatch.setenv(name, value)
    settings = InferenceSettings()
    assert settings.has_container
    assert (settings.container_url, settings.container_capability) == ("http://127.0.0.1:8123", "paint")


def test_a_container_without_a_name_is_refused(chart: helm.Chart) -> None:
    with pytest.raises(helm.HelmRenderError, match=r"inference\.container\.capability is empty"):
        render(chart, {"inference": {"container": {"image": "paint"}}})


def test_a_pool_without_gpus_asks_for_none(chart: helm.Chart) -> None:
    objects = render(chart, WITHOUT_GPU)
    pod = pods(objects)["inference"]
    assert container(pod)["resources"]["limits"].keys() == {"memory"}
    assert "tolerations" not in pod
    assert "SLUICE_INFERENCE_GPU_CLASS" not in environment(objects, "inference")


def test_models_are_fetched_before_a_pod_serves_into_what_it_reads(chart: helm.Chart) -> None:
    fetched = {"inference": {"models": {"fetch": ["stabilityai/sd-turbo", "own/model"]}}}
    pod = of_kind(render(chart, fetched), "Deployment")["inference"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"name": "SLUICE_INFERENCE_MODELS", "value": "/models"} in container["env"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    assert {"name": "models", "emptyDir": {"sizeLimit": "50Gi"}} in pod["volumes"]
    assert [one["command"][:4] for one in pod["initContainers"]] == [
        ["sluice", "models", "fetch", "stabilityai/sd-turbo"],
        ["sluice", "models", "fetch", "own/model"],
    ]
    assert {"name": "models", "mountPath": "/models"} in pod["initContainers"][0]["volumeMounts"]


def test_a_pool_that_fetches_nothing_has_no_place_for_models(objects: list[Object]) -> None:
    pod = of_kind(objects, "Deployment")["inference"]["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    assert "models" not in {volume["name"] for volume in pod["volumes"]}


def test_probes_ask_the_metrics_port(objects: list[Object]) -> None:
    for component, pod in pods(objects).items():
        listen = environment(objects, component)[
            f"SLUICE_{component.upper().replace('-', '_')}_METRICS_LISTEN"
        ]
        paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        for probe, path in paths.items():
            request = container(pod)[probe]["httpGet"]
            assert request["path"] == path
            assert port_named(pod, request["port"]) == host_port(listen)[1]


@pytest.mark.parametrize("component", SETTINGS)
def test_kubernetes_waits_longer_than_the_service(objects: list[Object], component: str) -> None:
    settings, pod = SETTINGS[component], pods(objects)[component]
    default = settings.model_fields["shutdown_grace_s"].default
    grace_s = float(environment(objects, component)[variables_of(settings, ["shutdown_grace_s"]).pop()])
    command = container(pod).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])
    assert grace_s == default
    assert pod["terminationGracePeriodSeconds"] > int(command[-1]) + 2 * grace_s


@pytest.mark.parametrize(
    "values",
    [
        {"router": {"terminationGracePeriodSeconds": 15}},
        {"router": {"settings": {"shutdown_grace_s": 12.5}}},
        {"router": {"preStopSeconds": 20}},
        {"shutdownGraceSeconds": 13, "inference": {"terminationGracePeriodSeconds": 300}},
        {"inference": {"drainSeconds": 170}},
        {"inference": {"settings": {"drain_s": 170}}},
    ],
)
def test_a_service_that_would_be_killed_while_it_ends_is_refused(chart: helm.Chart, values: Object) -> None:
    with pytest.raises(helm.HelmRenderError, match="terminationGracePeriodSeconds must be above"):
        render(chart, values)


def test_two_billing_pods_never_share_the_ledger(chart: helm.Chart, objects: list[Object]) -> None:
    spec = of_kind(objects, "Deployment")["billing"]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
    claim = of_kind(objects, "PersistentVolumeClaim")["billing"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    with pytest.raises(helm.HelmValuesError, match="replicas"):
        render(chart, {"billing": {"replicas": 2}})


def test_databases_are_on_volumes(objects: list[Object]) -> None:
    ledger = environment(objects, "billing")["SLUICE_BILLING_DATABASE_URL"].removeprefix("sqlite:///")
    outbox = environment(objects, "ingest")["SLUICE_INGEST_OUTBOX_PATH"]
    for component, path, volume in (("billing", ledger, "ledger"), ("ingest", outbox, "outbox")):
        mounts = container(pods(objects)[component])["volumeMounts"]
        assert {"name": volume, "mountPath": str(PurePosixPath(path).parent)} in mounts


def test_several_pods_are_evicted_one_at_a_time(objects: list[Object]) -> None:
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert budgets.keys() == {"ingest", "router", "session-manager", "inference"}
    assert all(each["spec"]["maxUnavailable"] == 1 for each in budgets.values())
    assert {each["spec"]["unhealthyPodEvictionPolicy"] for each in budgets.values()} == {"AlwaysAllow"}


def test_a_runner_that_is_to_go_has_time_room_and_a_way_to_have_its_sessions_moved(
    chart: helm.Chart, objects: list[Object]
) -> None:
    variables, pod = environment(objects, "inference"), pods(objects)["inference"]
    drain_s = float(variables["SLUICE_INFERENCE_DRAIN_S"])
    assert drain_s >= 60
    assert pod["terminationGracePeriodSeconds"] > drain_s + 2 * float(
        variables["SLUICE_INFERENCE_SHUTDOWN_GRACE_S"]
    )
    asked = variables["SLUICE_INFERENCE_SESSION_MANAGER_ADDRESS"]
    service = of_kind(objects, "Service")["session-manager"]
    assert asked == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    strategy = of_kind(objects, "Deployment")["inference"]["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    at_once = render(chart, {"inference": {"drainSeconds": 0, "terminationGracePeriodSeconds": 20}})
    assert environment(at_once, "inference")["SLUICE_INFERENCE_DRAIN_S"] == "0"


@pytest.mark.parametrize("values", [{}, {"secret": {"streamSecret": "s" * 16}}], ids=["random", "given"])
def test_the_generated_secret_is_kept_and_rolls_the_pods_that_read_it(
    chart: helm.Chart, values: Object
) -> None:
    objects = render(chart, values)
    secret = of_kind(objects, "Secret")[""]
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    text = "\n".join(f"{name}: {value}" for name, value in sorted(secret["data"].items()))
    checksums = {
        name: each["spec"]["template"]["metadata"].get("annotations", {}).get("checksum/secret")
        for name, each in of_kind(objects, "Deployment").items()
    }
    readers = dict.fromkeys(("ingest", "billing"), sha256(text.encode()).hexdigest())
    assert checksums == dict.fromkeys(SETTINGS) | readers


def test_given_secrets_are_used(chart: helm.Chart) -> None:
    objects = render(chart, {"secret": {"streamSecret": "s" * 16, "keyPepper": "p"}})
    assert environment(objects, "ingest")["SLUICE_INGEST_STREAM_SECRET"] == "s" * 16
    assert environment(objects, "billing")["SLUICE_BILLING_KEY_PEPPER"] == "p"


def test_random_secrets_differ_between_installations(chart: helm.Chart) -> None:
    secrets = [environment(render(chart), "ingest")["SLUICE_INGEST_STREAM_SECRET"] for _ in range(2)]
    assert secrets[0] != secrets[1]
    assert min(map(len, secrets)) >= 32


@contextmanager
def cluster_with(secret: Object) -> Iterator[helm.Config]:
    """Helm connected to a cluster of which it can see that there are Secrets, and this one."""
    answers = {
        "/api/v1": {
            "kind": "APIResourceList",
            "groupVersion": "v1",
            "resources": [{"name": "secrets", "kind": "Secret", "namespaced": True, "verbs": ["get"]}],
        },
        f"/api/v1/namespaces/video/secrets/{secret['metadata']['name']}": secret,
    }

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(urlsplit(self.path).path, {"kind": "Status", "code": 404})).encode()
            self.send_response(200 if urlsplit(self.path).path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Not of interest."""

    with HTTPServer(("127.0.0.1", 0), Api) as server:
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c"}}],
            "current-context": "c",
        }
        serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            with helm.Config(kubeconfig_content=json.dumps(kubeconfig), storage_driver="memory") as cluster:
                yield cluster
        finally:
            server.shutdown()
            serving.join()


def test_an_upgrade_finds_its_secrets_again(chart: helm.Chart) -> None:
    secret = of_kind(render(chart), "Secret")[""]
    with cluster_with(secret) as cluster:
        again = cluster.render(chart, NATS, name="demo", namespace="video")["sluice/templates/secret.yaml"]
        other = cluster.render(chart, NATS, name="other", namespace="video")["sluice/templates/secret.yaml"]
    assert yaml.safe_load(again) == secret
    assert yaml.safe_load(other)["data"] != secret["data"]


def test_an_existing_secret_is_used_and_none_is_made(chart: helm.Chart) -> None:
    objects = render(chart, {"secret": {"existingSecret": "mine"}})
    assert of_kind(objects, "Secret") == {}
    references = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]
        for pod in pods(objects).values()
        for variable in container(pod)["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert references == {
        "SLUICE_INGEST_STREAM_SECRET": {"name": "mine", "key": "stream-secret", "optional": False},
        "SLUICE_INGEST_TURN_SECRET": {"name": "mine", "key": "turn-secret", "optional": True},
        "SLUICE_BILLING_KEY_PEPPER": {"name": "mine", "key": "key-pepper", "optional": True},
    }


def opened(policies: Mapping[str, Object], direction: str, component: str) -> set[tuple[str, int]]:
    """What the policy of `component` allows to or from other components, as (component, port)."""
    peers = {"ingress": "from", "egress": "to"}[direction]
    return {
        (peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], port["port"])
        for rule in policies[component]["spec"][direction]
        for peer in rule.get(peers, [])
        if "podSelector" in peer
        for port in rule["ports"]
    }


def test_the_network_is_open_along_the_edges_and_nowhere_else(objects: list[Object]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    assert policies[""]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & policies[""]["spec"].keys()
    leaving = {(name, *peer) for name in SETTINGS for peer in opened(policies, "egress", name)}
    entering = {(peer, name, port) for name in SETTINGS for peer, port in opened(policies, "ingress", name)}
    assert leaving == entering == EDGES


def test_what_is_open_to_others_are_the_public_faces_metrics_dns_and_nats(
    objects: list[Object],
) -> None:
    for component, policy in of_kind(objects, "NetworkPolicy").items():
        if component:
            spec = policy["spec"]
            rules = [rule for rule in spec["ingress"] if "podSelector" not in str(rule)]
            entering = {port["port"] for rule in rules for port in rule["ports"]}
            assert entering == ({9464, 8000, 8002, 1935, 8189} if component == "ingest" else {9464})
            leaving = {port["port"] for rule in spec["egress"] if "to" not in rule for port in rule["ports"]}
            assert leaving == ({53, 4222, 1024} if component == "ingest" else {53, 4222})


@pytest.mark.parametrize(
    ("webrtc", "address", "host_port", "surge"),
    [
        ({}, "203.0.113.9", 8189, 0),
        ({"hostPort": 30189}, "203.0.113.9:30189", 30189, 0),
        ({"address": "video.example.com"}, "video.example.com", 8189, 0),
        ({"hostPort": 0}, "10.1.2.3", None, 1),
        ({"hostPort": 0, "address": "198.51.100.9:3478"}, "198.51.100.9:3478", None, 1),
    ],
)
def test_webrtc_clients_are_told_where_a_pods_port_is(
    chart: helm.Chart, webrtc: Object, address: str, host_port: int | None, surge: int
) -> None:
    objects = render(chart, {"ingest": {"webrtc": webrtc}})
    expected = address.replace("10.1.2.3", POD_IP)
    assert environment(objects, "ingest")["SLUICE_INGEST_WEBRTC_ADDRESS"] == expected
    (port,) = [port for port in container(pods(objects)["ingest"])["ports"] if port["protocol"] == "UDP"]
    assert (port["containerPort"], port.get("hostPort")) == (8189, host_port)
    strategy = of_kind(objects, "Deployment")["ingest"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxSurge"] == surge, "a second pod has no place on the node"


def test_a_turn_secret_is_passed_on_and_never_invented(chart: helm.Chart) -> None:
    given = render(chart, {"secret": {"turnSecret": "shared with coturn"}})
    assert environment(given, "ingest")["SLUICE_INGEST_TURN_SECRET"] == "shared with coturn"
    assert "SLUICE_INGEST_TURN_SECRET" not in environment(render(chart, {}), "ingest")


def test_peers_narrow_the_network(chart: helm.Chart) -> None:
    policy = of_kind(render(chart, EVERYTHING), "NetworkPolicy")["inference"]["spec"]
    by_port = {rule["ports"][0]["port"]: rule.get("to") for rule in policy["egress"]}
    assert by_port[4222] == [{"ipBlock": {"cidr": "198.51.100.7/32"}}]
    assert by_port[4317] == EVERYTHING["networkPolicy"]["otlpPeers"]
    assert 443 in by_port
    assert of_kind(render(chart, WITHOUT_GPU), "NetworkPolicy") == {}


def test_nats_is_allowed_on_the_port_of_its_url(chart: helm.Chart) -> None:
    for url, port in (("nats://u:p@host:4333", 4333), ("nats://host", 4222), ("tls://[fd00::1]", 4222)):
        policy = of_kind(render(chart, {"nats": {"url": url}}), "NetworkPolicy")["router"]["spec"]
        assert port in {each["port"] for rule in policy["egress"] for each in rule["ports"]}


@pytest.mark.parametrize(
    ("url", "port"), [("http://jaeger:16686", 16686), ("http://jaeger", 80), ("https://traces/jaeger", 443)]
)
def test_ingest_alone_looks_traces_up_and_may_go_there(chart: helm.Chart, url: str, port: int) -> None:
    objects = render(chart, {"telemetry": {"tracesUrl": url}})
    assert environment(objects, "ingest")["SLUICE_INGEST_TRACES_URL"] == url
    policies = of_kind(objects, "NetworkPolicy")
    going = {
        component
        for component in SETTINGS
        for rule in policies[component]["spec"]["egress"]
        if {"port": port, "protocol": "TCP"} in rule["ports"]
    }
    assert going == {"ingest"}
    narrowed = of_kind(render(chart, EVERYTHING), "NetworkPolicy")["ingest"]["spec"]["egress"]
    peers = [rule["to"] for rule in narrowed if rule["ports"][0]["port"] == 16686]
    assert peers == [EVERYTHING["networkPolicy"]["tracesPeers"]]


def test_a_runner_with_the_longest_release_name_still_has_a_name(chart: helm.Chart) -> None:
    releases = ["r" * 53, "r" * 52 + "s", "my.dotted.release"]
    names = [
        of_kind(render(chart, release=each), "Deployment")["inference"]["metadata"]["name"]
        for each in releases
    ]
    assert len(set(names)) == len(names)
    for name in names:
        InferenceSettings(runner=f"{name}-{'0' * 10}-{'0' * 5}")


BAD: Final[dict[str, Object]] = {
    "unknown key": {"ingres": {}},
    "unknown key of a component": {"router": {"replica": 2}},
    "unknown key of an image": {"ingest": {"image": {"name": "x"}}},
    "negative replicas": {"router": {"replicas": -1}},
    "no router": {"router": {"replicas": 0}},
    "replicas as text": {"ingest": {"replicas": "2"}},
    "half a pod": {"inference": {"replicas": 1.5}},
    "replicas of billing": {"billing": {"replicas": 2}},
    "latest": {"image": {"tag": "latest"}},
    "latest of a component": {"ingest": {"image": {"tag": "latest"}}},
    "short digest": {"ingest": {"image": {"digest": "sha256:abc"}}},
    "pull policy": {"image": {"pullPolicy": "Sometimes"}},
    "nats by http": {"nats": {"url": "http://nats:4222"}},
    "two nats servers": {"nats": {"url": "nats://a:4222,nats://b:4222"}},
    "nats replicas": {"nats": {"url": "nats://a:4222", "replicas": 2}},
    "short secret": {"secret": {"streamSecret": "short"}},
    "log level": {"log": {"level": "verbose"}},
    "collector without scheme": {"telemetry": {"otlpEndpoint": "collector:4317"}},
    "traces by gRPC": {"telemetry": {"tracesUrl": "jaeger:16685"}},
    "no grace": {"shutdownGraceSeconds": 0},
    "account as text": {"serviceAccount": {"create": "yes"}},
    "policy as text": {"networkPolicy": {"enabled": "true"}},
    "peers as a map": {"networkPolicy": {"publicPeers": {}}},
    "settings as a list": {"ingest": {"settings": ["first_picture_s=3"]}},
    "settings by variable": {"ingest": {"settings": {"SLUICE_INGEST_FIRST_PICTURE_S": 3}}},
    "service type": {"ingest": {"service": {"type": "External"}}},
    "port": {"ingest": {"service": {"port": 70_000}}},
    "no memory limit": {"router": {"resources": {"limits": {"memory": None}}}},
    "quantity": {"router": {"resources": {"requests": {"cpu": "one"}}}},
    "shared ledger": {"billing": {"persistence": {"accessMode": "ReadWriteMany"}}},
    "size": {"billing": {"persistence": {"size": "big"}}},
    "negative GPUs": {"inference": {"gpu": {"count": -1}}},
    "GPU resource": {"inference": {"gpu": {"resource": "gpu"}}},
    "rollout that cannot move": {"inference": {"rollout": {"maxSurge": 0, "maxUnavailable": 0}}},
    "selector with a number": {"inference": {"nodeSelector": {"gpu": 1}}},
    "no wait": {"inference": {"terminationGracePeriodSeconds": 0}},
}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_the_schema_refuses(chart: helm.Chart, values: Object) -> None:
    with pytest.raises(helm.HelmValuesError):
        render(chart, values)


def test_the_schema_accepts_the_defaults_and_everything(chart: helm.Chart) -> None:
    for values in ({}, NATS, EVERYTHING, WITHOUT_GPU, NATS | {"global": {"a": 1}}):
        chart.validate_schema(values)


def leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value and name != "resources":
            yield from leaves(value, (*path, name))
        else:
            yield ".".join((*path, name))


def test_the_readme_lists_every_value_with_its_default(chart: helm.Chart) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \| .+ \|$", (CHART / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    for name, default in rows:
        value: Any = chart.values
        for part in name.split("."):
            value = value[part]
        assert yaml.safe_load(default) == value, name


def test_the_notes_name_calls_that_exist(chart: helm.Chart) -> None:
    notes = next(text for path, text in chart.render(NATS, name="demo").items() if path.endswith("NOTES.txt"))
    script = re.search(r"<<'PYTHON'\n(.*?)^PYTHON$", notes, re.DOTALL | re.MULTILINE)
    assert script
    compile(script[1], "NOTES.txt", "exec")
    stub = (billing_pb2_grpc.BillingStub.__init__.__code__.co_names, vars(billing_pb2))
    for method, message in re.findall(r"billing\.(\w+)\(messages\.(\w+)\(", script[1]):
        assert method in stub[0]
        assert message in stub[1]
    assert "WARNING" not in notes


def test_the_dockerfile_builds_what_the_chart_runs(objects: list[Object]) -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    entries = dict(re.findall(r"^FROM runtime AS (\S+)\n.*\nENTRYPOINT (.+)$", text, re.MULTILINE))
    assert entries.keys() == {*SETTINGS, "inference-diffusion"}
    assert entries["inference-diffusion"] == entries["inference"]
    for component, pod in pods(objects).items():
        module = f"services.{component.replace('-', '_')}"
        assert yaml.safe_load(entries[component]) == ["python", "-m", module]
        assert SETTINGS[component].__module__.startswith(f"{module}.")
        assert f'".[{component}]"' in text
        assert component in extras
        context = pod["securityContext"]
        assert f"\nUSER {context['runAsUser']}:{context['runAsGroup']}\n" in text
