"""The names of the pipeline's steps, which placements and commands speak of without loading any engine."""

STEPS = (
    "query_teacher",
    "validate_data",
    "check_drift",
    "split",
    "align_proxy",
    "estimate_distributions",
    "distill_student_sft",
    "distill_student_proxy_kd",
    "evaluate_student",
    "promote_model",
)
"""The steps by the names under which ZenML keeps them."""
