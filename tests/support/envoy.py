"""Envoy before replicas on loopback, configured as Envoy Gateway does it for the routes and policies of the chart.

The translation is ours, of the fields that the chart uses. Each field is taken out of its object, and what is left over
is an error: nothing that the chart says goes unheeded here.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.chart import MODELS, RELEASE, found, objects
from support.nginx import self_signed
from support.serving import free_port

KINDS = ("sessions", "requests")
"""The routes, in their order: one with a header's match comes before one without."""
EXTENSIONS = "type.googleapis.com/envoy.extensions"
HTTP2 = f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
STATEFUL = f"{EXTENSIONS}.filters.http.stateful_session.v3.StatefulSession"


def envoy() -> str:
    found_at = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found_at:
        return found_at
    if os.environ.get("CI"):
        pytest.fail("There is no envoy: make .venv/dev.done.")
    pytest.skip("There is no envoy here; with it (make .venv/dev.done) these tests run.")


class Spec:
    """An object's `spec` that is taken apart: `take` gives a field once, and `end` fails if one is left."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._left = copy.deepcopy(dict(content))

    def take(self, path: str) -> Any:
        *parents, name = path.split(".")
        inside: Any = self._left
        for parent in parents:
            inside = inside[parent]
        return inside.pop(name)

    def end(self) -> None:
        def leaves(value: Any) -> Iterable[Any]:
            return [leaf for each in value.values() for leaf in leaves(each)] if isinstance(value, dict) else [value]

        assert not list(leaves(self._left)), f"not translated: {self._left}"


def _seconds(duration: str) -> str:
    return f"{int(duration.removesuffix('ms')) / 1000}s" if duration.endswith("ms") else duration


def _cluster(kind: str, balancer: dict[str, Any], policy: Spec, folder: Path) -> dict[str, Any]:
    if balancer["type"] == "ConsistentHash":
        size = balancer["consistentHash"]["tableSize"]
        name, typed = "maglev", {"@type": f"{EXTENSIONS}.load_balancing_policies.maglev.v3.Maglev", "table_size": size}
    else:
        assert balancer == {"type": "LeastRequest"}
        name = "least_request"
        typed = {"@type": f"{EXTENSIONS}.load_balancing_policies.least_request.v3.LeastRequest"}
    passive = policy.take("healthCheck.passive")
    breaker = policy.take("circuitBreaker")
    endpoints = {"resource_api_version": "V3", "path_config_source": {"path": str(folder / f"{kind}.json")}}
    return {
        "name": kind,
        "type": "EDS",
        "eds_cluster_config": {"service_name": kind, "eds_config": endpoints},
        "connect_timeout": _seconds(policy.take("timeout.tcp.connectTimeout")),
        "ignore_health_on_host_removal": True,
        "common_lb_config": {"healthy_panic_threshold": {"value": policy.take("healthCheck.panicThreshold")}},
        "typed_extension_protocol_options": {
            HTTP2.rpartition("/")[2]: {"@type": HTTP2, "explicit_http_config": {"http2_protocol_options": {}}}
        },
        "load_balancing_policy": {"policies": [{"typed_extension_config": {"name": name, "typed_config": typed}}]},
        "outlier_detection": {
            "split_external_local_origin_errors": passive.pop("splitExternalLocalOriginErrors"),
            "consecutive_local_origin_failure": passive.pop("consecutiveLocalOriginFailures"),
            "consecutive_5xx": passive.pop("consecutive5XxErrors"),
            "consecutive_gateway_failure": passive.pop("consecutiveGatewayErrors"),
            "enforcing_consecutive_gateway_failure": 100,  # as Envoy Gateway does
            "interval": _seconds(passive.pop("interval")),
            "base_ejection_time": _seconds(passive.pop("baseEjectionTime")),
            "max_ejection_percent": passive.pop("maxEjectionPercent"),
        }
        | passive,
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_pending_requests": breaker.pop("maxPendingRequests"),
                    "max_requests": breaker.pop("maxParallelRequests"),
                }
                | breaker
            ]
        },
    }


def _routes(kind: str, balancer: dict[str, Any], route: Spec, policy: Spec) -> list[dict[str, Any]]:
    (rule,) = route.take("rules")
    (backend,) = rule.pop("backendRefs")
    assert backend == {"name": f"{RELEASE}-replicas", "port": 8001}
    retry = policy.take("retry")
    action: dict[str, Any] = {
        "cluster": kind,
        "timeout": _seconds(policy.take("timeout.http.requestTimeout")),
        "retry_policy": {
            "num_retries": retry.pop("numRetries"),
            "retry_on": ",".join(retry.pop("retryOn")["triggers"]),
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 5,
        }
        | retry,
    }
    per_filter: dict[str, Any] = {}
    if balancer["type"] == "ConsistentHash":
        assert balancer["consistentHash"]["type"] == "Header"
        action["hash_policy"] = [{"header": {"header_name": balancer["consistentHash"]["header"]["name"]}}]
    if persistence := rule.pop("sessionPersistence", None):
        assert persistence["type"] == "Header"
        per_route = {"@type": f"{STATEFUL}PerRoute", "stateful_session": _stateful(persistence["sessionName"])}
        per_filter["stateful"] = per_route
    matches = rule.pop("matches")
    assert not rule
    return [
        {
            "match": {
                "path": f"/{each['method']['service']}/{each['method']['method']}",
                "headers": [
                    {"name": header["name"], "string_match": {"safe_regex": {"regex": header["value"]}}}
                    for header in each.get("headers", [])
                    if header["type"] == "RegularExpression"
                ],
            },
            "route": action,
            "typed_per_filter_config": per_filter,
        }
        for each in matches
    ]


def _stateful(header: str) -> dict[str, Any]:
    state = {"@type": f"{EXTENSIONS}.http.stateful_session.header.v3.HeaderBasedSessionState", "name": header}
    return {"session_state": {"name": "envoy.http.stateful_session.header", "typed_config": state}}


def _listener(port: int, routes: list[dict[str, Any]], largest: int, tls: dict[str, Any] | None) -> dict[str, Any]:
    filters = [
        {
            "name": "buffer",
            "typed_config": {"@type": f"{EXTENSIONS}.filters.http.buffer.v3.Buffer", "max_request_bytes": largest},
        },
        {
            "name": "stateful",
            "disabled": True,
            "typed_config": {"@type": STATEFUL, **_stateful("unused")},
        },
        {"name": "router", "typed_config": {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}},
    ]
    manager = {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "guard",
        "http2_protocol_options": {"max_concurrent_streams": 1024},
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "guard", "domains": ["*"], "routes": routes}]},
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls:
        chain["transport_socket"] = {"name": "tls", "typed_config": tls}
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }


class Envoy:
    """Envoy as a context manager. `url` is a plain port, `tls_url` one with the certificate `certificate`."""

    def __init__(self, folder: Path, replicas: Iterable[str], values: Mapping[str, Any] = MODELS) -> None:
        self._folder = folder
        port, tls_port = free_port(), free_port()
        self.url, self.tls_url = f"127.0.0.1:{port}", f"localhost:{tls_port}"
        self.certificate = folder / "tls" / "tls.crt"
        self_signed(self.certificate)
        self._version = 0
        self.use(replicas)
        (folder / "envoy.json").write_text(json.dumps(self._bootstrap(objects(values), port, tls_port)))

    def _bootstrap(self, chart: list[dict[str, Any]], port: int, tls_port: int) -> dict[str, Any]:
        routes, clusters, largest = [], [], ""
        for kind in KINDS:
            policy = Spec(found(chart, "BackendTrafficPolicy", f"{RELEASE}-{kind}")["spec"])
            route = Spec(found(chart, "GRPCRoute", f"{RELEASE}-{kind}")["spec"])
            (target,) = policy.take("targetRefs")
            assert (target["kind"], target["name"]) == ("GRPCRoute", f"{RELEASE}-{kind}")
            assert route.take("parentRefs") == [{"name": RELEASE}]
            balancer = policy.take("loadBalancer")
            routes += _routes(kind, balancer, route, policy)
            clusters.append(_cluster(kind, balancer, policy, self._folder))
            largest = policy.take("requestBuffer.limit")
            policy.end()
            route.end()
        chain = {
            "certificate_chain": {"filename": str(self.certificate)},
            "private_key": {"filename": str(self.certificate.with_suffix(".key"))},
        }
        tls = {
            "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificates": [chain], "alpn_protocols": ["h2"]},
        }
        size = int(largest.removesuffix("Mi")) << 20
        listeners = [_listener(port, routes, size, None), _listener(tls_port, routes, size, tls)]
        return {
            "node": {"id": "test", "cluster": "test"},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        }

    def __enter__(self) -> Envoy:
        command = [envoy(), "-c", str(self._folder / "envoy.json"), "--disable-hot-restart", "--concurrency", "1"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--log-level", "warning"], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, self.log[:500]
            assert time.monotonic() < deadline, self.log[:500]
            time.sleep(0.05)
        return self

    def _answers(self) -> bool:
        host, _, port = self.url.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def use(self, replicas: Iterable[str]) -> None:
        """Another list of replicas. One with ` down` behind it drains."""
        self._version += 1
        endpoints = []
        for each in replicas:
            url, _, state = each.partition(" ")
            host, _, port = url.rpartition(":")
            address = {"socket_address": {"address": host, "port_value": int(port)}}
            endpoints.append({"endpoint": {"address": address}, "health_status": "DRAINING" if state else "UNKNOWN"})
        for kind in KINDS:
            resource = {
                "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": kind,
                "endpoints": [{"lb_endpoints": endpoints}],
            }
            written = self._folder / f"{kind}.new"
            written.write_text(json.dumps({"version_info": str(self._version), "resources": [resource]}))
            written.rename(self._folder / f"{kind}.json")

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()
