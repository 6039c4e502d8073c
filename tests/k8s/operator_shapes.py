"""The parts of the Prometheus and the External Secrets operators' resources that the manifests use.

Written from their API references, stricter than their own schemas: any field beyond these is a fault, so that a new one
is looked up before it is used.
"""

from typing import Any

DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": sorted(required), "properties": properties, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


def _resource(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _closed({"name": NAME}, {"namespace": NAME, "labels": LABELS, "annotations": LABELS})
    return _closed({"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


_ENDPOINT = _closed(
    {"port": {"type": "string"}, "path": {"type": "string", "pattern": "^/"}},
    {"interval": DURATION, "scrapeTimeout": DURATION},
)
_ALERT = _closed(
    {
        "alert": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
        "expr": {"type": "string"},
        "for": DURATION,
        "labels": _closed({"severity": {"enum": ["critical", "warning", "info"]}}),
        "annotations": _closed({"summary": {"type": "string"}, "runbook_url": {"type": "string"}}),
    }
)
_MONITOR = _closed({"selector": _closed({"matchLabels": LABELS}), "endpoints": _list(_ENDPOINT)})
_RULES = _closed({"groups": _list(_closed({"name": {"type": "string"}, "rules": _list(_ALERT)}))})
_SECRET = _closed(
    {
        "refreshInterval": DURATION,
        "secretStoreRef": _closed({"name": NAME, "kind": {"enum": ["SecretStore", "ClusterSecretStore"]}}),
        "target": _closed(
            {
                "name": NAME,
                "creationPolicy": {"enum": ["Owner", "Orphan", "Merge", "None"]},
                "deletionPolicy": {"enum": ["Delete", "Merge", "Retain"]},
            }
        ),
        "data": _list(
            _closed(
                {
                    "secretKey": {"type": "string"},
                    "remoteRef": _closed({"key": {"type": "string"}, "property": {"type": "string"}}),
                }
            )
        ),
    }
)

SHAPES: dict[tuple[str, str], dict[str, Any]] = {
    (api_version, kind): _resource(api_version, kind, spec)
    for api_version, kind, spec in (
        ("monitoring.coreos.com/v1", "ServiceMonitor", _MONITOR),
        ("monitoring.coreos.com/v1", "PrometheusRule", _RULES),
        ("external-secrets.io/v1", "ExternalSecret", _SECRET),
    )
}
