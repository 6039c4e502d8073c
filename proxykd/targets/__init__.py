"""The sparse target store: for every position of the teacher's text, k tokens, their log-probabilities, and a tail.

codec    how positions become arrays on disk (the part that a denser format would replace)
writer   a stream of samples -> sharded safetensors files and an index, in bounded memory
reader   (prompt, sample) -> its target, through a memory map

The store does not know where the distributions came from, nor what they are for.
"""
