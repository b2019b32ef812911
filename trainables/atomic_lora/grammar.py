"""The grammar of a grid: where each row of a batch stands while it is written, and which tokens can follow.

The writer decides the size: its first ``ROW_END`` fixes the width, ``EOS`` the height. Tokens that cannot stand at a
position in any grid (a ragged row, a 31st column) are not offered to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.arc import COLOURS, EOS, MAX_SIDE, PAD, ROW_END, VOCABULARY


class GridState:
    """Grids that are being written, token by token.

    Args:
        count: Grids N.
        device: Where their state lives.

    Attributes:
        rows: Row of the next token, [N].
        columns: Its column, [N].
        width: Width of the grid, [N]; 0 while the first row is written.
        done: Grids that are complete, bool [N].
    """

    def __init__(self, count: int, device: str | torch.device = "cpu") -> None:
        self.rows, self.columns, self.width = torch.zeros(3, count, dtype=torch.long, device=device)
        self.done = torch.zeros(count, dtype=torch.bool, device=device)

    def allowed(self) -> Tensor:
        """Return which tokens can come next, bool [N, vocabulary]."""
        return allowed(self.rows, self.columns, self.width)

    def write(self, token: Tensor) -> Tensor:
        """Take the next token of each row, [N]; return it, ``PAD`` where the grid was complete before."""
        token = torch.where(self.done, PAD, token)
        ends_row = token == ROW_END
        self.width = torch.where(ends_row & (self.rows == 0), self.columns, self.width)
        self.done = self.done | (token == EOS)
        self.rows = torch.where(ends_row, self.rows + 1, self.rows)
        self.columns = torch.where(ends_row, 0, torch.where(self.done, self.columns, self.columns + 1))
        return token

    def keep(self, kept: Tensor) -> None:
        """Forget all rows but some, bool [N]."""
        self.rows, self.columns, self.width, self.done = (
            t[kept] for t in (self.rows, self.columns, self.width, self.done)
        )


def allowed(rows: Tensor, columns: Tensor, width: Tensor) -> Tensor:
    """Return which tokens can stand at each position, bool [N, vocabulary].

    Args:
        rows: Row of the token to be written, [N].
        columns: Its column, [N].
        width: Width of the grid, [N]; unknown (0) while the first row is written.
    """
    first = rows == 0
    limit = torch.where(first, MAX_SIDE, width)
    table = torch.zeros(len(rows), VOCABULARY, dtype=torch.bool, device=rows.device)
    table[:, :COLOURS] = ((columns < limit) & (rows < MAX_SIDE))[:, None]
    table[:, ROW_END] = torch.where(first, columns > 0, columns == width) & (rows < MAX_SIDE)
    table[:, EOS] = ~first & (columns == 0)
    return table
