"""ZenML steps: unpack the specification, call the library, return named artifacts."""
