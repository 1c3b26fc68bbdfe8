"""The Helm chart, rendered by Helm's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import helm_python
import yaml

from support.places import ROOT

CHART = ROOT / "deploy" / "helm"
RELEASE, NAMESPACE = "guard", "moderation"
NOTES = "qwen3guard/templates/NOTES.txt"
MODELS = {"models": {"image": {"reference": "registry.example/guards@sha256:" + "0" * 64}}}
"""The least that an installation must say."""


def rendered(values: Mapping[str, Any], name: str = RELEASE) -> dict[str, str]:
    """The text of each template, by its path. Raises helm_python.HelmError for values that the chart refuses."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(chart.merge_values(dict(values)))
        return dict(chart.render(dict(values), name=name, namespace=NAMESPACE))


def objects(values: Mapping[str, Any] = MODELS, name: str = RELEASE) -> list[dict[str, Any]]:
    """What is installed."""
    texts = [text for path, text in rendered(values, name).items() if path != NOTES]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def found(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (one,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return one
