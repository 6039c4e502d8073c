"""Alignment of the open proxy to the black box (Proxy-KD, arXiv:2401.07013, Eq. 3-6).

alignment   the stage: warm-up, preference rounds, fidelity.json
rounds      which texts a round sees, and the pairs that it learns from
training    TRL's trainers, given token ids as they are
fidelity    how close the proxy is to the teacher's held-out text, and how far a round has moved it
"""
