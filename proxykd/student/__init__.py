"""The student: what it minimises and how it is trained.

objective   NLL + alpha * weighted divergence (Proxy-KD, Eq. 7, 8, 10, 11) + the prior's term
order       which examples make up which step
optimizer   AdamW and the course of its learning rate
loop        one training run
training    all runs of an arm: learning-rate search, seeds, record
"""
