"""What a process that trains on CPUs should find in its environment when it starts."""

from __future__ import annotations

_MALLOC = {
    "hugetlb": 1,  # large pages, where the kernel lets programs ask for them
    # what is freed is kept: a step's tensors come again, and fresh pages cost more than computing on them
    "mmap_max": 0,
    "trim_threshold": 2**40,
    "top_pad": 64 * 2**20,
    "arena_max": 1,  # a training loop may run in another thread than the main one
}

TRAINING_ENVIRONMENT = {
    "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _MALLOC.items()),
    # oneDNN makes a kernel for each shape, and batches of rows have more shapes than the 1,024 that it remembers
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384",
}
