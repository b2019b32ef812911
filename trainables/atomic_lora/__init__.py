"""Bases for ARC tasks (Champion, canvas model, causal LMs), and one LoRA adapter per task on a frozen one."""
