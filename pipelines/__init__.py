"""ZenML pipelines, one a file: wiring only."""
