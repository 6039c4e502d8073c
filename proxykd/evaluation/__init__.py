"""How good the student is, on held-out prompts that no stage has learnt from: numbers, their intervals, a decision.

    statistics   intervals and paired differences by bootstrap over prompts
    heldout      NLL and top-1 agreement on the teacher's held-out text
    exact_kl     the true KL from the embedded teacher, whose odds are known
    tasks        exact-match tasks with reference answers, through lm-evaluation-harness
    evaluating   the stage: every arm on the same prompts
    report       report.json -> a table for the terminal and a page with plots
    decision     report.json -> promote, keep or undecided

Equations and the names of their symbols: ``docs/evaluation.md``.
"""
