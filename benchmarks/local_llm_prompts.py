"""Write the prompts of configs/local-llm.yaml: short requests, every template with every topic it fits.

.venv/bin/python benchmarks/local_llm_prompts.py > configs/local-llm-prompts.jsonl
"""

import itertools
import json

TEMPLATES = (
    "Explain in two sentences what {topic} is.",
    "Give three short facts about {topic}.",
    "Write one sentence that a child would understand about {topic}.",
    "What is {topic} used for? Answer in one or two sentences.",
    "Name one common misunderstanding about {topic} and correct it briefly.",
    "Write a short question about {topic} and answer it.",
    "Describe {topic} in about twenty words.",
    "Why does {topic} matter? Keep the answer short.",
    "Give one practical tip that has to do with {topic}.",
    "Write a two-line poem about {topic}.",
)
TOPICS = (
    "a compass", "rain", "the moon", "bread", "a bicycle", "electricity", "a library", "the heart", "a bridge", "honey",
    "sleep", "a volcano", "paper", "a telescope", "salt", "a train", "photosynthesis", "a map", "glass", "the ocean",
    "a clock", "soap", "a garden", "gravity", "a ladder", "coffee", "a vaccine", "wool", "a calendar", "recycling",
    "a mirror", "steel", "a lighthouse", "music", "an elevator", "the wind", "a dictionary", "chess", "a battery",
    "cheese", "a river", "a pencil", "snow", "a camera", "the brain", "wood", "a kitchen", "sunlight",
)  # fmt: skip


def main() -> None:
    """Print one JSON object a line."""
    for topic, template in itertools.product(TOPICS, TEMPLATES):
        print(json.dumps({"prompt": template.format(topic=topic)}))


if __name__ == "__main__":
    main()
