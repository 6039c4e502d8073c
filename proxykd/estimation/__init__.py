"""The teacher's next-token distributions, estimated through the aligned proxy; and how much each sample may teach.

targets_from_proxy   the proxy, teacher-forced on the teacher's text -> a target store (Proxy-KD, Eq. 8)
prior                n-gram frequencies over the teacher's corpus -> sparse distributions (version 1); counted by ngrams
weights              the proxy's log-likelihood of each text -> its weight (Proxy-KD, Eq. 9)
"""
