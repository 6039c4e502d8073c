"""Batch APIs: many requests in one submission, answered within a day, at a part of the price.

asking       what the stage calls
asker        submits what the journal lacks, waits, journals what comes; goes on after a kill
chunks       which requests are in which batch, durable before a batch is submitted
api          what an API's batches look like from here
openai       files and batches of the OpenAI API
anthropic    message batches of the Anthropic API
"""
