"""Reasoning agents in five phases: decomposition, refinement, retrieval, tree search and a router."""
