"""Names of resources and labels that more than one module writes or reads."""

GPU, STORAGE = "nvidia.com/gpu", "ephemeral-storage"
"""Resources of a pod: its GPUs, and the node's disk."""
PART_OF = {"app.kubernetes.io/part-of": "proxykd"}
"""The label of every object of ours."""
ROLE = "proxykd.dev/role"
"""The label that says whom a pod may reach, as k8s/base/network has it."""
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
"""By these labels Kueue knows the LocalQueue and the WorkloadPriorityClass of a piece of work."""
START_TIMEOUT = "PROXYKD_START_TIMEOUT_S"
"""Variable of the orchestrator's pod: its stack's ``start_timeout_s``; not there = its steps may wait for ever."""
