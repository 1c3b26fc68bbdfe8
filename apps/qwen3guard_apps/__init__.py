"""What people do with a served guard: annotate and evaluate data, put a guard before an LLM, watch a stream.

Knows the client alone; nothing of graphs, Triton or models.
"""
