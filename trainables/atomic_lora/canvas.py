"""The canvas model: a base that writes the whole output grid at once, in patches, instead of token by token.

Input and output are placed in the upper left corner of a square canvas of S x S pixels (S even, at most 30); pixels
beyond a grid have the colour ``OUTSIDE``. A vision transformer over patches of 2 x 2 pixels reads the input and gives
every pixel a distribution over the ten colours and ``OUTSIDE``; the answer's size is the rectangle of most likelihood.
The model knows the rule of a task from an embedding of the task, so there are no solved pairs in its input. A task
that it was not trained on has places of its own in the embedding (`UNSEEN`), which an adapter trains.

The parts are those of vision transformers for ARC (VARC, LoopViT, 2025), of DiT (Peebles and Xie, 2023: modulation by
the condition) and of ShiftViT (Wang et al., 2022: a part of the channels comes from the neighbouring patches).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.arc import COLOURS, MAX_SIDE, SYMMETRIES, Grid
from trainables.atomic_lora.config import CanvasConfig
from trainables.common.errors import InputError
from trainables.common.pretrained import weights_fingerprint

OUTSIDE, CLASSES = COLOURS, COLOURS + 1
# beyond the canvas itself, for windows that reach over its edge
BEYOND = CLASSES
PATCH, WINDOW = 2, 4
# places in the embedding of a loaded model for a task that it was not trained on, one for each symmetry of the square:
# a view of the task under a symmetry has another rule
UNSEEN = SYMMETRIES
# what a file holds as [tasks, width] is [width, tasks] in a linear layer
TASK_TABLES = ("task_vector.weight", "task_tokens.weight")
# channels that come from each of the eight neighbours, as a share of the width
SHIFTED = 1 / 16
NEIGHBOURS = [(row, column) for row in (0, 1, 2) for column in (0, 1, 2) if (row, column) != (1, 1)]


def rotary(side: int, size: int, extra: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [T, size / 2] of rotary positions over rows and columns of ``side`` x ``side`` patches.

    The first ``extra`` of the T tokens have no position. Half of the angles turn with the row, half with the column.
    """
    rates = 100.0 ** -(torch.arange(size // 4, device=device) / (size // 4))
    places = torch.arange(side, device=device)
    angles = torch.cat([
        (places[:, None] * rates).repeat_interleave(side, 0), (places[:, None] * rates).repeat(side, 1)
    ], dim=1)  # fmt: skip
    angles = torch.cat([angles.new_zeros(extra, size // 2), angles])
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (first half, second half) of x [N, heads, T, size] by the angles [T, size / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend all to all, [N, heads, T, size]; on CPUs by two products, since the fused kernel's backward is slow."""
    if q.device.type == "cuda":
        # cuDNN's kernel fails in backward passes of some canvas sizes (torch 2.11 on an H200)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return F.scaled_dot_product_attention(q, k, v)
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


class Block(nn.Module):
    """Attention over all patches and a gated feed-forward layer that also sees the neighbouring patches.

    Both are modulated by the task's vector: a scale and a shift of what they read, a factor of what they write.
    """

    def __init__(self, config: CanvasConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * config.feedforward, bias=False)
        self.down = nn.Linear(config.feedforward, width, bias=False)
        self.modulation = nn.Linear(config.task_width, 6 * width)
        for layer in (self.out, self.down, self.modulation):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, task: Tensor, cos: Tensor, sin: Tensor, side: int) -> Tensor:
        """x [N, T, D] of which the last ``side`` x ``side`` tokens are patches, the tasks' vectors [N, C], positions
        [T, size / 2] -> [N, T, D]."""
        scale1, shift1, gain1, scale2, shift2, gain2 = self.modulation(task)[:, None].chunk(6, dim=-1)
        y = F.rms_norm(x, x.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, T, size]
        q, k = (rotate(F.rms_norm(t, t.shape[-1:]), cos, sin).to(v.dtype) for t in (q, k))
        x = x + (1 + gain1) * self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        y = F.rms_norm(x, x.shape[-1:]) * (1 + scale2) + shift2
        gate, value = self.up(shift(y, side)).chunk(2, dim=-1)
        return x + (1 + gain2) * self.down(F.silu(gate) * value)


def shift(x: Tensor, side: int) -> Tensor:
    """Replace some channels of each patch by those of its eight neighbours, equally many of each; x [N, T, D].

    The last ``side`` x ``side`` tokens are patches, the others stay as they are; beyond the canvas there are zeros.
    """
    width = max(1, int(x.shape[-1] * SHIFTED))
    moved, extra = 8 * width, x.shape[1] - side * side
    padded = F.pad(x[:, extra:, :moved].unflatten(1, (side, side)), (0, 0, 1, 1, 1, 1))
    parts = [
        padded[:, row : row + side, column : column + side, i * width : (i + 1) * width]
        for i, (row, column) in enumerate(NEIGHBOURS)
    ]
    shifted = torch.cat([x[:, :extra, :moved], torch.cat(parts, dim=-1).flatten(1, 2)], dim=1)
    return torch.cat([shifted, x[..., moved:]], dim=-1)


class Canvas(nn.Module):
    """Inputs and a task in, a distribution for every pixel of the output out.

    Args:
        config: Its shape.
        tasks: Number of tasks with an embedding. The tables of embeddings are linear layers over the one-hot task, so
            that LoRA adapts them as it does any other layer.
    """

    def __init__(self, config: CanvasConfig, tasks: int) -> None:
        super().__init__()
        self.config, self.tasks = config, tasks
        width = config.width
        self.window = nn.Linear(WINDOW * WINDOW * (CLASSES + 1), width, bias=False)
        # of a patch: its row and column from the upper left, and from the lower right end of the input
        self.rows, self.columns = nn.Embedding(MAX_SIDE // PATCH, width), nn.Embedding(MAX_SIDE // PATCH, width)
        self.rows_left, self.columns_left = nn.Embedding(2 * MAX_SIDE + 1, width), nn.Embedding(2 * MAX_SIDE + 1, width)
        self.task_vector = nn.Linear(tasks, config.task_width, bias=False)
        self.task_tokens = nn.Linear(tasks, config.task_tokens * width, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.modulation = nn.Linear(config.task_width, 2 * width)
        # for each pixel of a patch: its colours, OUTSIDE, and how much stays as in the input
        self.head = nn.Linear(width, PATCH * PATCH * (CLASSES + 1))
        nn.init.normal_(self.task_vector.weight, std=1.0)
        for embedding in (self.rows, self.columns, self.rows_left, self.columns_left, self.task_tokens):
            nn.init.normal_(embedding.weight, std=0.02)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor, sizes: Tensor, tasks: Tensor) -> Tensor:
        """Return logits [N, S, S, 11].

        Args:
            inputs: Canvases with colours 0 to 9 and ``OUTSIDE``, integers [N, S, S].
            sizes: Height and width of each input in pixels, [N, 2].
            tasks: Index of each row's task, [N].
        """
        count, pixels = inputs.shape[0], inputs.shape[-1]
        side, extra = pixels // PATCH, self.config.task_tokens
        windows = F.pad(inputs, (1, 1, 1, 1), value=BEYOND).unfold(1, WINDOW, PATCH).unfold(2, WINDOW, PATCH)
        # of a layer that no adapter wraps
        dtype = self.rows.weight.dtype
        seen = F.one_hot(windows.reshape(count, side * side, -1).long(), CLASSES + 1).flatten(2)
        x = self.window(seen.to(dtype))
        places = torch.arange(side, device=inputs.device)
        left = sizes[:, :, None] - PATCH * places + MAX_SIDE  # [N, 2, side]
        rows = self.rows(places) + self.rows_left(left[:, 0])  # [N, side, D]
        columns = self.columns(places) + self.columns_left(left[:, 1])
        x = x + (rows[:, :, None] + columns[:, None]).flatten(1, 2)
        known = F.one_hot(tasks, self.tasks).to(dtype)
        x = torch.cat([self.task_tokens(known).unflatten(1, (extra, -1)), x], dim=1)
        vector = self.task_vector(known)
        cos, sin = rotary(side, self.config.width // self.config.heads, extra, inputs.device)
        for block in self.blocks:
            x = block(x, vector, cos, sin, side)
        scale, shift_ = self.modulation(vector)[:, None].chunk(2, dim=-1)
        y = self.head(F.rms_norm(x[:, extra:], x.shape[-1:]) * (1 + scale) + shift_).float()
        y = y.unflatten(-1, (PATCH, PATCH, CLASSES + 1)).unflatten(1, (side, side))
        y = y.transpose(2, 3).reshape(count, pixels, pixels, CLASSES + 1)
        return y[..., :CLASSES].scatter_add(-1, inputs.long()[..., None], y[..., CLASSES:])

    def components(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by component, for the component monitor."""
        groups: dict[str, list[nn.Module]] = {
            "embedding": [self.window, self.rows, self.columns, self.rows_left, self.columns_left],
            "task_embedding": [self.task_vector, self.task_tokens],
            "blocks": [self.blocks],
            "head": [self.modulation, self.head],
        }
        return {name: [p for module in modules for p in module.parameters()] for name, modules in groups.items()}


def pixel_losses(logits: Tensor, inputs: Tensor, targets: Tensor, changed_weight: float) -> Tensor:
    """Return each row's cross-entropy, a mean over pixels in which those that change count more, [N].

    Args:
        logits: [N, S, S, 11].
        inputs: [N, S, S].
        targets: [N, S, S], ``OUTSIDE`` beyond the output.
        changed_weight: Weight of a pixel that differs from the input's; the others have 1.
    """
    weight = torch.where(targets == inputs, 1.0, changed_weight).flatten(1)
    losses = F.cross_entropy(logits.flatten(0, 2), targets.flatten().long(), reduction="none").view_as(weight)
    return (losses * weight).sum(1) / weight.sum(1)


def answers(logits: Tensor) -> list[Grid]:
    """Return the grid that each row of logits [N, S, S, 11] means: the rectangle of highest likelihood."""
    grids, sizes = likeliest(logits)
    drawn = grids.to(torch.int8).cpu().numpy()
    return [drawn[i, :height, :width].copy() for i, (height, width) in enumerate(sizes.tolist())]


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest colour of each pixel, [N, S, S], and the likeliest height and width, [N, 2].

    A rectangle's likelihood is that of its pixels being inside and of all others being ``OUTSIDE``.
    """
    colours, outside = logits[..., :OUTSIDE], logits[..., OUTSIDE]
    inside = (colours.float().logsumexp(-1) - outside.float()).cumsum(1).cumsum(2)
    best, side = inside.flatten(1).argmax(1), logits.shape[1]
    return colours.argmax(-1), torch.stack([best // side, best % side], dim=1) + 1


def right_cells(logits: Tensor, targets: Tensor, output_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the answers that logits [N, S, S, 11] mean with the truth.

    Args:
        logits: [N, S, S, 11].
        targets: True canvases, [N, S, S].
        output_sizes: True heights and widths, [N, 2], which may go beyond the canvas.

    Returns:
        Whether each answer is exactly right, the share of its true cells that are right, and whether its size is, [N].
    """
    colours, sizes = likeliest(logits)
    places = torch.arange(colours.shape[1], device=colours.device)

    def inside(sizes: Tensor) -> Tensor:
        return (places[:, None] < sizes[:, 0, None, None]) & (places < sizes[:, 1, None, None])

    right = (colours == targets) & inside(output_sizes) & inside(sizes)
    cells = right.flatten(1).sum(1) / output_sizes.prod(1)
    sized = (sizes == output_sizes).all(1)
    return (cells == 1.0) & sized, cells, sized


def rows_at_once(patches: int, heads: int, batch_tokens: int) -> int:
    """Return how many rows of so many patches go through the model together: about ``batch_tokens`` patches.

    CUDA's attention kernels take fewer than 65,536 rows times heads.
    """
    return max(1, min(65_535 // heads, batch_tokens // patches))


def even(side: int) -> int:
    """Return the side of the smallest canvas that holds ``side`` pixels."""
    return min(MAX_SIDE, side + side % PATCH)


def canvas_side(height: int, width: int, ratio: float) -> int:
    """Return the side of the canvas of an input: large enough for it and for its output, if the task's ratio holds.

    The output's own size is not asked for: it is part of the answer.
    """
    side = max(height, width)
    return even(max(side, min(MAX_SIDE, math.ceil(side * ratio))))


@dataclass(frozen=True)
class CanvasBase:
    """A frozen canvas model and what is known of it.

    Attributes:
        model: The model, in evaluation mode, no parameter requiring a gradient.
        config: What it was trained with.
        tasks: Ids of the tasks that it has embeddings of, in their order, with the growth of their outputs.
        fingerprint: 16 hex digits of its weights, configuration and tasks.
    """

    model: Canvas
    config: CanvasConfig
    tasks: Mapping[str, float]
    fingerprint: str


def save_canvas(
    path: Path, model: Canvas, tasks: Mapping[str, float], facts: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write weights and, in the safetensors metadata, configuration, tasks and ``facts`` (JSON)."""
    state = {name: tensor.T if name in TASK_TABLES else tensor for name, tensor in model.state_dict().items()}
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    metadata = {"config": asdict(model.config), "tasks": dict(tasks), "facts": dict(facts)}
    save_file(weights, path, metadata={name: json.dumps(value) for name, value in metadata.items()})


def load_canvas(path: str | Path, device: str = "cpu") -> CanvasBase:
    """Load a canvas model that `save_canvas` wrote, in float32, frozen, with `UNSEEN` more places for a task.

    What is in these places is the mean of all tasks' embeddings.

    Args:
        path: The safetensors file, or the folder that holds ``canvas.safetensors``.
        device: Where to put it.

    Raises:
        InputError: If there is no such file or it does not hold a canvas model.
    """
    file = Path(path).expanduser()
    file = file / "canvas.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"--base {str(path)!r}: there is no canvas.safetensors there.")
    try:
        with safe_open(file, framework="pt", device="cpu") as store:
            metadata = store.metadata() or {}
            weights = {name: store.get_tensor(name) for name in store.keys()}  # noqa: SIM118 - not a mapping
        config, tasks = CanvasConfig(**json.loads(metadata["config"])), json.loads(metadata["tasks"])
        model = Canvas(config, len(tasks) + UNSEEN)
        state = {name: weight.float() for name, weight in weights.items()}
        for name in TASK_TABLES:
            table = state[name]
            state[name] = torch.cat([table, table.mean(0, keepdim=True).expand(UNSEEN, -1)]).T
        model.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--base {str(path)!r} is not a canvas model ({type(error).__name__}: {error}).") from error
    # tasks are known by their places, so their order counts
    facts = {"config": asdict(config), "tasks": list(tasks.items())}
    digits = weights_fingerprint({name: weight.float().numpy() for name, weight in weights.items()}, facts)
    return CanvasBase(model.to(device).eval().requires_grad_(False), config, tasks, digits)


def on_canvas(grids: Sequence[Grid], side: int) -> np.ndarray:
    """Return grids as canvases, uint8 [N, side, side]; what is beyond the canvas is cut off."""
    canvases = np.full((len(grids), side, side), OUTSIDE, dtype=np.uint8)
    for canvas, grid in zip(canvases, grids, strict=True):
        canvas[: grid.shape[0], : grid.shape[1]] = grid[:side, :side]
    return canvases
