"""The shapes of the APIs: one adapter a provider, pure functions, no I/O.

base         what an adapter is, and the request that one makes of a prompt
openai       the OpenAI chat-completions shape, which most servers speak
anthropic    the Anthropic Messages API
gemini       the Gemini API's generateContent
"""
