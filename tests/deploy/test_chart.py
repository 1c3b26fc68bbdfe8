"""The Helm chart: what it installs is well-formed and closed, in each of its forms, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import pairwise
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from qwen3guard_contract.parameters import PARAMETERS
from qwen3guard_server.server import EXIT_S
from support.chart import CHART, MODELS, NAMESPACE, NOTES, RELEASE, found, objects, rendered
from support.places import ROOT

VERSIONS = ("1.31", "1.37")
"""Of Kubernetes: the first that knows images as volumes, and the newest whose schemas are here."""
CLAIM = {"models": {"claim": {"create": True}, "subPath": "first", "loader": True}}
NGINX = MODELS | {"entry": "nginx"}
GPU = MODELS | yaml.safe_load((CHART / "values-gpu.yaml").read_text())
ALL = MODELS | {
    "token": {"secretName": "guard-token"},
    "tls": {"issuer": {"name": "letsencrypt", "kind": "ClusterIssuer"}, "dnsNames": ["guard.example"]},
    "autoscaling": {"kind": "keda"},
    "monitoring": {"podMonitor": True, "rules": True, "dashboard": True, "labels": {"release": "prometheus"}},
    "gateway": {"hostname": "guard.example", "persistenceHeader": "x-guard-replica"},
    "parameters": {"stream": {"kv_budget_bytes": 4294967296, "turn_s": 0.05}, "gen": {"strict": False}},
    "imagePullSecrets": [{"name": "registry"}],
}
FORMS: dict[str, Mapping[str, Any]] = {
    "gateway": MODELS,
    "nginx": NGINX,
    "a gateway that is there": MODELS | {"gateway": {"create": False, "name": "edge", "namespace": "edge"}},
    "no way in": MODELS | {"entry": "none", "networkPolicy": {"entry": []}},
    "claim": CLAIM,
    "gpu": GPU,
    "hpa": NGINX | {"autoscaling": {"kind": "hpa"}},
    "everything": ALL,
}
PASSIVE = (
    "splitExternalLocalOriginErrors consecutiveLocalOriginFailures consecutive5XxErrors consecutiveGatewayErrors "
    "interval baseEjectionTime maxEjectionPercent"
)
BEHAVIOR = "advanced.horizontalPodAutoscalerConfig.behavior"
RULES = "stabilizationWindowSeconds policies.type policies.value policies.periodSeconds"
CHECKED: dict[str, list[tuple[str, str]]] = {
    "Gateway": [
        ("", "gatewayClassName"),
        ("listeners.", "name protocol port hostname tls.mode tls.certificateRefs.name"),
        ("listeners.allowedRoutes.", "namespaces.from kinds.kind"),
    ],
    "GRPCRoute": [
        ("", "hostnames parentRefs.name parentRefs.namespace"),
        ("rules.", "backendRefs.name backendRefs.port sessionPersistence.type sessionPersistence.sessionName"),
        ("rules.matches.", "method.service method.method headers.type headers.name headers.value"),
    ],
    "ClientTrafficPolicy": [
        ("targetRefs.", "group kind name"),
        ("", "http2.maxConcurrentStreams timeout.http.requestReceivedTimeout"),
    ],
    "BackendTrafficPolicy": [
        ("targetRefs.", "group kind name"),
        ("loadBalancer.", "type consistentHash.type consistentHash.header.name consistentHash.tableSize"),
        ("", "timeout.tcp.connectTimeout timeout.http.requestTimeout retry.numRetries retry.retryOn.triggers"),
        ("", "circuitBreaker.maxPendingRequests circuitBreaker.maxParallelRequests requestBuffer.limit"),
        ("healthCheck.", "panicThreshold"),
        ("healthCheck.passive.", PASSIVE),
    ],
    "Certificate": [
        ("", "secretName dnsNames issuerRef.name issuerRef.kind issuerRef.group"),
        ("privateKey.", "algorithm size rotationPolicy"),
    ],
    "ScaledObject": [
        ("", "scaleTargetRef.kind scaleTargetRef.name minReplicaCount maxReplicaCount"),
        (f"{BEHAVIOR}.scaleUp.", RULES),
        (f"{BEHAVIOR}.scaleDown.", RULES),
        ("triggers.", "type name metricType metadata.serverAddress metadata.query metadata.threshold"),
        ("triggers.", "metadata.ignoreNullValues"),
    ],
    "PodMonitor": [("", "selector.matchLabels podMetricsEndpoints.port podMetricsEndpoints.interval")],
    "PrometheusRule": [("groups.", "name rules.alert rules.expr rules.for rules.labels rules.annotations")],
}
"""The fields that were held by hand against the CRDs of Envoy Gateway 1.9 (with Gateway API's experimental channel),
cert-manager 1.21, KEDA 2.20 and the Prometheus operator 0.93, which no package index has. Hold a further one against
them too."""


@pytest.fixture(params=FORMS)
def installed(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return objects(FORMS[request.param])


def pods(installed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specification of each kind of pod."""
    return [
        each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
        for each in installed
        if each["kind"] in ("Pod", "StatefulSet", "Deployment")
    ]


def replica(installed: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = found(installed, "StatefulSet", f"{RELEASE}-replica")["spec"]["template"]["spec"]
    return spec


def container(installed: list[dict[str, Any]]) -> dict[str, Any]:
    (one,) = replica(installed)["containers"]
    return dict(one)


def test_helm_finds_nothing_to_say() -> None:
    report = helm_python.lint(CHART, dict(MODELS), strict=True)
    assert [each for each in report["messages"] if "icon" not in each["error"]] == []
    assert report["errors"] == []


def test_kubernetes_knows_every_field(installed: list[dict[str, Any]]) -> None:
    ours = [each for each in installed if "." not in each["apiVersion"] or ".k8s.io/" in each["apiVersion"]]
    ours = [each for each in ours if not each["apiVersion"].startswith("gateway.")]
    assert len(ours) >= 4
    for version in VERSIONS:
        for each in ours:
            kubernetes_validate.validate(each, version, strict=True)


def fields(value: Any, path: str = "") -> Iterator[str]:
    """The path of each field that is not an object itself; of labels and the like, that of the whole."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for each in value:
            yield from fields(each, path)
    elif isinstance(value, dict) and path.rpartition(".")[2] not in ("labels", "annotations", "matchLabels"):
        for name, inner in value.items():
            yield from fields(inner, f"{path}.{name}" if path else name)
    else:
        yield path


def test_other_objects_have_no_field_that_was_not_checked(installed: list[dict[str, Any]]) -> None:
    for each in installed:
        if each["kind"] in CHECKED:
            known = {path + name for path, names in CHECKED[each["kind"]] for name in names.split()}
            assert set(fields(each["spec"])) <= known, each["kind"]
        else:
            assert "." not in each["apiVersion"] or each["apiVersion"].startswith(("networking.k8s.io/", "apps/"))


def test_alerts_say_what_they_are() -> None:
    rules = [
        rule for group in found(objects(ALL), "PrometheusRule", RELEASE)["spec"]["groups"] for rule in group["rules"]
    ]
    assert rules
    for rule in rules:
        assert list(rule["annotations"]) == ["summary"]
        assert rule["annotations"]["summary"].endswith(".")


def test_a_misspelt_field_is_noticed() -> None:
    document = found(objects(), "StatefulSet", f"{RELEASE}-replica")
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_nothing_runs_as_root_or_writes_where_it_need_not(installed: list[dict[str, Any]]) -> None:
    for spec in pods(installed):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for each in spec["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(each["resources"]["requests"])
            assert "memory" in each["resources"]["limits"]
    (models,) = (each for each in container(installed)["volumeMounts"] if each["mountPath"] == "/models")
    assert models["readOnly"]


def test_whatever_is_selected_is_there(installed: list[dict[str, Any]]) -> None:
    """Services, budgets and policies select pods by labels, and a misspelt one would select none."""
    labels = [
        (each["metadata"] if each["kind"] == "Pod" else each["spec"]["template"]["metadata"])["labels"]
        for each in installed
        if each["kind"] in ("Pod", "StatefulSet", "Deployment")
    ]
    for each in installed:
        spec = each.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if each["kind"] in ("PersistentVolumeClaim",) or selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        assert [pod for pod in labels if wanted.items() <= pod.items()], each["kind"]


def test_nothing_is_installed_twice(installed: list[dict[str, Any]]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in installed]
    assert len(names) == len(set(names))
    assert all(name.startswith(RELEASE) for _, name in names)


def test_only_the_way_in_and_prometheus_reach_the_replicas(installed: list[dict[str, Any]]) -> None:
    policy = found(installed, "NetworkPolicy", f"{RELEASE}-replica")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    assert all(rule["from"] and len(rule["ports"]) == 1 for rule in policy.get("ingress") or [])
    assert {rule["ports"][0]["port"] for rule in policy["ingress"]} <= {8001, 8002}


def test_nginx_finds_as_many_replicas_as_may_run() -> None:
    installed = objects(NGINX | {"replicas": {"max": 12}})
    stateful = found(installed, "StatefulSet", f"{RELEASE}-replica")
    service = found(installed, "Service", stateful["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    data = found(installed, "ConfigMap", f"{RELEASE}-nginx")["data"]
    servers = re.findall(r"^server (\S+) resolve;$", data["replicas.conf"], re.MULTILINE)
    domain = f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
    assert servers == [f"{stateful['metadata']['name']}-{number}.{domain}:8001" for number in range(12)]
    assert data["nginx.conf"].strip() == (ROOT / "deploy" / "nginx" / "nginx.conf").read_text().strip()


def test_another_list_of_replicas_restarts_nginx() -> None:
    def sums(values: Mapping[str, Any]) -> str:
        template = found(objects(values), "Deployment", f"{RELEASE}-nginx")["spec"]["template"]
        return str(template["metadata"]["annotations"])

    assert sums(NGINX) == sums(NGINX | {"replicas": {"count": 3}})
    assert sums(NGINX) != sums(NGINX | {"replicas": {"max": 9}})


def test_parameters_reach_the_replicas_as_they_are_written() -> None:
    variables = {each["name"]: each.get("value") for each in container(objects(ALL))["env"]}
    assert variables["QWEN3GUARD_STREAM_KV_BUDGET_BYTES"] == "4294967296"
    assert variables["QWEN3GUARD_STREAM_TURN_S"] == "0.05"
    assert variables["QWEN3GUARD_GEN_STRICT"] == "false"
    huge = container(objects(MODELS | {"parameters": {"stream": {"kv_budget_bytes": 1e30}}}))["env"]
    assert {"name": "QWEN3GUARD_STREAM_KV_BUDGET_BYTES", "value": "1e+30"} in huge  # which the server refuses


def test_with_a_gpu_no_guard_runs_without_one() -> None:
    one = container(objects(GPU))
    variables = {each["name"]: each.get("value") for each in one["env"]}
    assert variables["QWEN3GUARD_GEN_DEVICE"] == variables["QWEN3GUARD_STREAM_DEVICE"] == "cuda"
    assert one["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert one["resources"]["limits"]["memory"]
    assert replica(objects(GPU))["tolerations"]
    engines = GPU | {"parameters": {"gen": {"device": "tensorrt"}}}
    variables = {each["name"]: each.get("value") for each in container(objects(engines))["env"]}
    assert variables["QWEN3GUARD_GEN_DEVICE"] == "tensorrt"
    assert not [each for each in container(objects())["env"] if each["name"].endswith("_DEVICE")]


def test_a_token_is_a_secret_that_must_be_there() -> None:
    (token,) = (each for each in container(objects(ALL))["env"] if each["name"] == "QWEN3GUARD_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "guard-token", "key": "token"}}
    assert not [each for each in objects(ALL) if each["kind"] == "Secret"]
    assert "There is no token" in rendered(MODELS)[NOTES]
    assert "There is no token" not in rendered(ALL)[NOTES]


def test_a_pod_is_given_the_time_it_takes_to_drain(installed: list[dict[str, Any]]) -> None:
    (one,) = replica(installed)["containers"]
    drains_s = int(one["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert replica(installed)["terminationGracePeriodSeconds"] > drains_s + EXIT_S


def test_another_export_is_a_rollout() -> None:
    templates = [
        found(objects(values), "StatefulSet", f"{RELEASE}-replica")["spec"]["template"]
        for values in (CLAIM, {"models": CLAIM["models"] | {"subPath": "second"}}, MODELS)
    ]
    assert [each["spec"]["containers"][0]["volumeMounts"][0].get("subPath") for each in templates] == [
        "first",
        "second",
        None,
    ]
    assert templates[0] != templates[1] != templates[2]


def test_autoscaling_leaves_the_number_to_the_scaler_and_ends_where_the_names_do() -> None:
    for kind, least, most in (("keda", "minReplicaCount", "maxReplicaCount"), ("hpa", "minReplicas", "maxReplicas")):
        installed = objects(MODELS | {"autoscaling": {"kind": kind}, "replicas": {"count": 3, "max": 6}})
        assert "replicas" not in found(installed, "StatefulSet", f"{RELEASE}-replica")["spec"]
        (scaler,) = (each for each in installed if each["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"))
        assert (scaler["spec"][least], scaler["spec"][most]) == (3, 6)
        assert scaler["spec"]["scaleTargetRef"]["name"] == f"{RELEASE}-replica"


def test_queries_and_alerts_are_of_metrics_that_there_are() -> None:
    known = set(re.findall(r"`(qwen3guard_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    scaled = found(objects(ALL), "ScaledObject", f"{RELEASE}-replica")["spec"]["triggers"]
    rules = found(objects(ALL), "PrometheusRule", RELEASE)["spec"]
    assert rules == yaml.safe_load((ROOT / "deploy" / "grafana" / "alerts.yaml").read_text())
    adapter = (CHART / "README.md").read_text().partition("```yaml")[2].partition("```")[0]
    queries = [each["metadata"]["query"] for each in scaled]
    queries += [rule["metricsQuery"] + rule["seriesQuery"] for rule in yaml.safe_load(adapter)["rules"]["custom"]]
    used = {name for query in queries for name in re.findall(r"qwen3guard_\w+", query)}
    assert used
    assert {name.removesuffix("_sum") for name in used} <= known
    selector = f'{{namespace="{NAMESPACE}",pod=~"{RELEASE}-replica-[0-9]+"}}'
    assert all(selector in each["metadata"]["query"] for each in scaled)
    names = {rule["name"]["as"] for rule in yaml.safe_load(adapter)["rules"]["custom"]}
    hpa = found(objects(FORMS["hpa"]), "HorizontalPodAutoscaler", f"{RELEASE}-replica")["spec"]["metrics"]
    assert {each["pods"]["metric"]["name"] for each in hpa} == names
    assert {each["pods"]["target"]["averageValue"] for each in hpa} == {"600m", "700m"}


def test_the_dashboard_is_that_of_grafana() -> None:
    data = found(objects(ALL), "ConfigMap", f"{RELEASE}-dashboard")["data"]
    assert json.loads(data["qwen3guard.json"]) == json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "Say where the model repository is"),
        ({"models": MODELS["models"] | {"claim": {"name": "models"}}}, "not both"),
        (MODELS | {"models": MODELS["models"] | {"loader": True}}, "copies into a claim"),
        (MODELS | {"replicas": {"count": 9}}, "replicas.count is 9, above replicas.max, which is 8"),
        (MODELS | {"replicas": {"count": 0}, "autoscaling": {"kind": "keda"}}, "must then be 1 or more"),
        (MODELS | {"gateway": {"create": False}}, "name the Gateway"),
        (MODELS | {"tls": {"issuer": {"name": "letsencrypt"}}}, "say for which names"),
        (MODELS | {"gateway": {"tableSize": 65536}}, "no prime number"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(values: dict[str, Any], words: str) -> None:
    with pytest.raises(helm_python.HelmError, match=words):
        rendered(values)


@pytest.mark.parametrize(
    "values",
    [
        {"replica": {"count": 3}},
        {"token": {"value": "a-secret"}},
        {"image": {"digest": "latest"}},
        {"entry": "ingress"},
        {"models": MODELS["models"] | {"subPath": "../other"}},
        {"parameters": {"stream": {"KV-budget": "1"}}},
        {"gateway": {"persistenceHeader": "x-guard-session"}},
        {"autoscaling": {"sessions": 60}},
        {"autoscaling": {"sessions": 0.0001}},
        {"parameters": {"stream": {"slot": 16}}},
        {"parameters": {"gen": {"kv_budget_bytes": 1}}},
        {"parameters": {"gen": None}},
        {"models": MODELS["models"] | {"claim": {"size": "1..5Gi"}}},
        {"replicas": {"sharedMemory": "5i"}},
        {"replicas": {"sharedMemory": "1K"}},
        {"replicas": {"maxUnavailable": ""}},
        {"replicas": {"maxUnavailable": -1}},
        {"replicas": {"maxUnavailable": "one"}},
        {"replicas": {"drainSeconds": None}},
        {"replicas": None},
        {"replicas": [{"count": 2}]},
        {"gateway": {"timeout": {"sessions": "100000s"}}},
        {"gateway": {"maxRequest": "8K"}},
    ],
)
def test_a_value_that_nobody_reads_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        rendered(MODELS | values)


def test_the_schema_knows_each_models_parameters() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["parameters"]["properties"]
    models = {"gen": "gen_guard", "stream": "stream_guard"}
    models |= {"genTokenizer": "guard_tokenizer", "streamTokenizer": "stream_tokenizer"}
    known = {name: schema[name]["propertyNames"]["enum"] for name in schema}
    assert known == {name: sorted(PARAMETERS[model]) for name, model in models.items()}


@pytest.mark.parametrize("name", ["my.guard", "9guards", "Guard", "g" * 45, "guard-", "true.x"])
def test_a_release_whose_services_or_pods_kubernetes_would_refuse(name: str) -> None:
    with pytest.raises(helm_python.HelmError, match="release"):
        rendered(MODELS, name)


@pytest.mark.parametrize("name", ["null", "true", "on", "y", "g" * 44])
@pytest.mark.parametrize("form", ["nginx", "everything"])
def test_a_name_is_text_whatever_yaml_takes_it_for(name: str, form: str) -> None:
    numbers: dict[str, Any] = {
        "tls": {"secretName": "1234", "issuer": {"name": "1e3"}, "dnsNames": ["guard.example"]},
        "token": {"secretName": "007", "key": "1"},
        "gateway": {"create": False, "name": "2", "namespace": "3"},
    }
    installed = objects({**FORMS[form], **numbers}, name)
    for each in installed:
        labels = each["metadata"]["labels"]
        assert (each["metadata"]["name"], labels["app.kubernetes.io/instance"]) == (str(each["metadata"]["name"]), name)
    strings = json.dumps(installed)
    assert all(f'"{each}"' in strings for each in ("007", "1234", "1e3"))
    stateful = found(installed, "StatefulSet", f"{name}-replica")
    assert len(f"{stateful['metadata']['name']}-{'0' * 10}") <= 63  # a label of its pods
    for each in installed:
        if each["apiVersion"] in ("v1", "apps/v1"):
            kubernetes_validate.validate(each, VERSIONS[-1], strict=True)


def leaves(values: Mapping[str, Any], schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that the schema does not divide further, with its path."""
    for name, value in values.items():
        inner = schema["properties"][name]
        if "properties" in inner and not path.endswith("resources"):
            yield from leaves(value, inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def test_the_readme_has_every_value_with_its_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (CHART / "README.md").read_text(), re.MULTILINE)
    assert [(path, json.loads(default)) for path, default in rows] == list(leaves(values, schema))


def test_the_schema_has_a_type_for_every_value_and_no_other() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = deepcopy(json.loads((CHART / "values.schema.json").read_text()))
    assert schema["properties"].pop("global") == {"type": "object"}  # Helm's own

    def same(values: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
        assert set(values) == set(schema["properties"])
        assert schema["additionalProperties"] is False
        for name, inner in schema["properties"].items():
            if "properties" in inner:
                same(values[name], inner)

    same(values, schema)


def installations() -> Iterator[tuple[str, list[str]]]:
    """Each `helm` command of the documents, with the page's name."""
    for page in (ROOT / "deploy" / "README.md", CHART / "README.md"):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("helm "):
                    yield page.parent.name, shlex.split(line)


def test_the_commands_of_the_documents_install_what_they_say() -> None:
    commands = list(installations())
    assert {page for page, _ in commands} == {"deploy", "helm"}
    former: dict[str, Any] = {}
    for _, (helm, verb, release, chart, *options) in commands:
        assert (helm, release, ROOT / chart) == ("helm", RELEASE, CHART)
        assert verb == "install" or "--reuse-values" in options
        values = former if "--reuse-values" in options else {}
        for option, value in pairwise(options):
            if option == "--set":
                given = helm_python.parse_set_string(value.replace("DIGEST", "0" * 64))
                values = merged(values, given)
        former = values
        assert found(objects(values), "StatefulSet", f"{RELEASE}-replica")


def merged(values: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm merges: maps go together, and of two other values the later counts."""
    return values | {
        name: merged(values.get(name) or {}, value) if isinstance(value, Mapping) else value
        for name, value in others.items()
    }
