"""Faults of every kind, in every phase in which they can strike, on real runs: what must never hang, lie or lose anything."""
