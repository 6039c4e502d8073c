"""Open models: where they come from, how they are made smaller, and how they are run in batches.

tokenizers   sources and tokenizers, fingerprints that tell whether two of them agree (no torch)
embedded     the tiny models of the quickstart: shapes and tokenizer
loading      source -> model, pruning, LoRA, saving for plain transformers
forward      teacher-forced logits and scores at completion tokens
sampling     completions drawn from a model
"""
