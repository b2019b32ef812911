"""The slots that a probe finds, on a device whose memory ends and whose speed is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.trainables.pack.tiny import Row, draw, net
from trainables.pack import probe
from trainables.pack.bank import AdapterPack
from trainables.pack.probe import probe_slots


class Device:
    """Computes a loss for real, and says how long it took; memory ends above ``fits`` rows."""

    clock = 0.0

    def perf_counter(self) -> float:
        return self.clock

    def __init__(self, pack: AdapterPack, fits: int, fixed_s: float, per_row_s: float) -> None:
        self.pack, self.fits, self.fixed_s, self.per_row_s = pack, fits, fixed_s, per_row_s
        self.seen: list[int] = []

    def score(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(len(rows))
        if len(rows) > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        self.clock += self.fixed_s + self.per_row_s * len(rows)
        inputs = torch.stack([row.inputs[:1] for row in rows])
        losses = self.pack.model(inputs).square().sum((1, 2))
        return losses, losses > 0


@pytest.mark.parametrize(
    ("fits", "fixed_s", "per_row_s", "slots"),
    [
        (12, 0.02, 0.0, 4),  # 4 slots of 2 rows fit, 8 do not
        (10**6, 0.02, 0.0, 16),  # free rows: as many as are allowed
        (10**6, 0.0, 0.01, 1),  # a second slot gains nothing
    ],
)
def test_slots_double_while_it_pays_and_fits(
    monkeypatch: pytest.MonkeyPatch, fits: int, fixed_s: float, per_row_s: float, slots: int
) -> None:
    pack = AdapterPack(net(), ["hidden"])
    device = Device(pack, fits, fixed_s, per_row_s)
    monkeypatch.setattr(probe, "time", device)
    rows = draw(0, 1, 2, torch.float64)
    assert probe_slots(pack, device, rows, rank=2, dtype=torch.float64, most=16) == slots  # type: ignore[arg-type]
    assert pack.bank is None and max(device.seen) <= 32
