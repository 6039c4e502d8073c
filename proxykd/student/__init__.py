"""The student: what it minimises and how it is trained.

objective            NLL + alpha * weighted divergence (Proxy-KD, Eq. 7, 8, 10, 11) + the prior's term
module               the model with its loss: what one micro-batch is put through
inputs               texts, and the targets that they are learnt with
target_source, translation, translated_targets, unshared   targets of another tokenizer
order                which examples make up which step, micro-batch and row
optimizer            AdamW and the course of its learning rate
checkpoints          what a killed run goes on from
sharding, launch, worker   one run in several processes
loop                 one training run
training             all runs of an arm: learning-rate search, seeds, record
"""
