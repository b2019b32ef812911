"""Train many LoRA adapters on one frozen base in batched steps.

`bank` holds the stacked adapters and puts them on a model's linear layers, `engine` trains them from a queue of jobs,
`checkpoint` writes a slot's state and PEFT's own adapter format. Nothing here knows a model family, Ray or a file
format of data: a `engine.Workload` brings those.
"""
