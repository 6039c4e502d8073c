"""The student: what it minimises and how it is trained.

objective   NLL + alpha * weighted KL (Proxy-KD, Eq. 7, 8, 10, 11)
order       which examples make up which step
optimizer   AdamW and the course of its learning rate
loop        one training run
training    all runs of an arm: learning-rate search, seeds, record
"""
