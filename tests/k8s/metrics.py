"""The metrics that the alerts may ask for, by who counts them, with the labels that they have there.

From the documentation of kube-state-metrics (its stable metrics of Deployments, StatefulSets, Jobs and Pods), of the
kubelet (statistics of volumes), of Kueue 0.19, and of prometheus-flask-exporter 0.23, with MLflow's prefix.
"""

_POD = frozenset({"namespace", "pod", "uid"})

METRICS: dict[str, dict[str, frozenset[str]]] = {
    "kube-state-metrics": {
        "kube_deployment_status_replicas_available": frozenset({"namespace", "deployment"}),
        "kube_statefulset_status_replicas_ready": frozenset({"namespace", "statefulset"}),
        "kube_job_failed": frozenset({"namespace", "job_name", "condition"}),
        "kube_pod_container_status_terminated_reason": _POD | {"container", "reason"},
        "kube_pod_status_phase": _POD | {"phase"},
    },
    "kubelet": {
        "kubelet_volume_stats_available_bytes": frozenset({"namespace", "persistentvolumeclaim"}),
        "kubelet_volume_stats_capacity_bytes": frozenset({"namespace", "persistentvolumeclaim"}),
    },
    "kueue": {
        "kueue_pending_workloads": frozenset({"cluster_queue", "status"}),
        "kueue_admitted_workloads_total": frozenset({"cluster_queue", "priority_class"}),
        "kueue_cluster_queue_status": frozenset({"cluster_queue", "status"}),
    },
    # The namespace is that of the scraped pod: Prometheus adds it.
    "mlflow": {"mlflow_http_request_total": frozenset({"method", "status", "namespace"})},
}
"""Source -> metric -> its labels."""
