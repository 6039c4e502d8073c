"""The sparse target store: for every position of the teacher's text, k tokens, their log-probabilities, and a tail.

codec        what a target is, and the plain format
quantising   probabilities -> whole levels within a bound on the KL
kernels, write_kernels, read_kernels   the compiled loops of the coded format
tables, fitting        its model: what is likely where
coding       positions <-> bytes, given the tables
formats      both formats behind one interface
shards       files of checksummed blocks
index, summary         which sample is where; what the store is
writer       a stream of samples -> shards, by any number of workers, and the merge
reader       (prompt, sample) -> its target, through a memory map

The store does not know where the distributions came from, nor what they are for.
"""
