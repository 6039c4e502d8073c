"""Black-box access: everything that may ask a teacher, and nothing that looks inside one.

Reading order:
    query        the stage: prompts in, one completion (with exactly one outcome) a prompt and sample out
    live         a teacher over HTTP: its requests, their price, an engine for them
    engine       bounded concurrency over a stream of requests; retry, journal and transport meet here
    budget       hard caps: a call's worst case is reserved before it is sent
    retry        when to try again and how long to wait, as pure functions
    journal      every paid answer, durable before it counts
    providers    the shapes of the APIs: request bodies out, replies in, an adapter each
    replies      what an answer amounts to, whatever API it came from
    transport    one HTTP request
    recorded     completions that the user already has
    problems     the embedded teacher: word problems with known odds (questions in ``stories``, texts in
                 ``wording``)
    server       the embedded teacher over HTTP, a process of its own (started by ``serving``)
    build_tokenizer  makes the tokenizer of the tiny embedded models
    truth        the embedded teacher's exact next-token distributions; the evaluation alone may import it
"""
