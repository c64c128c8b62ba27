"""Tensors in memory: what collectives, files and digests need of their layout. It imports nothing of ours."""
