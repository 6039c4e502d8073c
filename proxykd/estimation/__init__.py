"""The teacher's next-token distributions, estimated from its texts; and how much each sample may teach.

estimating       the step: texts, counts and proxy -> a store of sparse targets
estimators       proxy, prior, posterior, logprobs: one interface
posterior        the prior updated by draws from the proxy, and by what the API told
evidence         what the API told, in the proxy's tokens
sparse_targets   which tokens of an estimate are stored: top-k, sampled, threshold
estimates        dense and sparse distributions of a batch, and draws from them
weights          the proxy's log-likelihood of each text -> its weight (Proxy-KD, Eq. 9)
"""
