"""What a process that trains should find in its environment when it starts: allocators, and no proxy for neighbours."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# large pages, where the kernel lets programs ask for them, and nothing that is freed goes back to the system: a step's
# tensors come again, and fresh pages cost more than computing on them. One arena, since one thread trains, though not
# always the main one, large tensors in it too. Tasks become smaller during a sweep, and what large tensors left must do
# for small ones, however much larger it is
_JEMALLOC = {
    "thp": "always", "dirty_decay_ms": -1, "muzzy_decay_ms": -1, "narenas": 1, "oversize_threshold": 0,
    "lg_extent_max_active_fit": 16,
}  # fmt: skip
_GLIBC = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**40, "top_pad": 64 * 2**20, "arena_max": 1}

TRAINING_ENVIRONMENT = {
    # Ray brings jemalloc for its own processes; glibc looks through long lists of what was freed for each tensor
    "RAY_LD_PRELOAD_ON_WORKERS": "1",
    "MALLOC_CONF": ",".join(f"{name}:{value}" for name, value in _JEMALLOC.items()),
    # for workers of a cluster that was started without the first
    "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _GLIBC.items()),
    # oneDNN makes a kernel for each shape, and batches of rows have more shapes than the 1,024 that it remembers
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384",
}


def environment_without_ray() -> dict[str, str]:
    """Return `TRAINING_ENVIRONMENT` with what Ray adds in its workers: jemalloc, where Ray is installed with it."""
    ray = find_spec("ray")
    library = Path(*ray.submodule_search_locations, "core", "libjemalloc.so") if ray else None  # type: ignore[misc]
    return TRAINING_ENVIRONMENT | ({"LD_PRELOAD": str(library)} if library and library.exists() else {})


def keep_local_addresses_from_proxies(more: Iterable[str] = ()) -> None:
    """Have this process, and those that it starts, reach this machine without the proxy that the environment names.

    Args:
        more: Further hosts to reach directly.
    """
    local = ["localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname(), *more]
    for name in ("no_proxy", "NO_PROXY"):
        listed = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*listed, *local]))
