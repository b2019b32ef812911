"""Stacked LoRA adapters, and the linear layers that apply them.

Letters in shape comments: S slots, N rows of a batch, T tokens, R largest rank, I/O in/out features, P values an
adapter.

Every adapter of a bank lies in one row of a flat [S, P] buffer; the A [S, R, I] and B [S, O, R] factors of each layer
are views into it, and so are their gradients: one clip and one optimizer step serve all layers and all slots at once.
A rank below R leaves rows of A and columns of B at zero, which is exact: their gradients are zero as well.
LoRA is from Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import copy
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.common.errors import InputError, did_you_mean

Path = Literal["bmm", "runs", "loop"]
# rows start to end of a batch, which belong to one slot: (slot, start, end)
Run = tuple[int, int, int]


@dataclass(frozen=True)
class Columns:
    """Where one layer's factors lie in a row of the flat buffer: A in [start, middle), B in [middle, end)."""

    start: int
    middle: int
    end: int


class AdapterBank:
    """S adapters for the same layers, stacked.

    Args:
        layers: (in features, out features) of each adapted layer, by its dotted name.
        slots: S.
        rank: R, the largest rank that fits.
        device: Where the bank lives.
        dtype: Its floating-point type.

    Attributes:
        flat: [S, P] all factors.
        grad: [S, P] the gradient of each, at the same place; None but in a bank that `take` made trainable.
        a: [S, R, I] views by layer name.
        b: [S, O, R] views by layer name.
        scale: [layers, S], alpha / rank, 0 where a slot does not adapt a layer.
        columns: Where each layer lies in ``flat``.
    """

    def __init__(
        self, layers: Mapping[str, tuple[int, int]], slots: int, rank: int, device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.layers, self.rank = dict(layers), rank
        self.columns: dict[str, Columns] = {}
        self.index = {name: i for i, name in enumerate(layers)}
        width = 0
        for name, (inputs, outputs) in layers.items():
            self.columns[name] = Columns(width, width + rank * inputs, width + rank * (inputs + outputs))
            width = self.columns[name].end
        flat = torch.zeros(slots, width, device=device, dtype=dtype)
        self._hold(flat, flat.new_zeros(len(self.layers), slots), trainable=False)

    def _hold(self, flat: Tensor, scale: Tensor, trainable: bool) -> None:
        self.flat, self.scale = flat, scale
        self.grad = torch.zeros_like(flat) if trainable else None
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        for name, (inputs, outputs) in self.layers.items():
            place = self.columns[name]
            self.a[name] = self._view(place.start, place.middle, (self.rank, inputs))
            self.b[name] = self._view(place.middle, place.end, (outputs, self.rank))

    def _view(self, start: int, end: int, shape: tuple[int, int]) -> Tensor:
        view = self.flat[:, start:end].unflatten(1, shape)
        if self.grad is not None:
            view.requires_grad_()
            # autograd adds into a gradient that is already there: the flat buffer fills itself
            view.grad = self.grad[:, start:end].unflatten(1, shape)
        return view

    @property
    def slots(self) -> int:
        """S."""
        return len(self.flat)

    def take(self, rows: Tensor, trainable: bool = False) -> AdapterBank:
        """Return a bank with copies of the slots ``rows`` [k], in their order, some perhaps more than once.

        A trainable one collects gradients.
        """
        bank = copy.copy(self)
        bank._hold(self.flat.index_select(0, rows), self.scale.index_select(1, rows), trainable)
        return bank

    @torch.no_grad()
    def write(self, slot: int, factors: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> None:
        """Put an adapter into a slot: A [r, I] and B [O, r] of each layer it adapts; everything else becomes zero."""
        self.flat[slot].zero_()
        self.scale[:, slot].zero_()
        for name, (a, b) in factors.items():
            rank = a.shape[0]
            self.a[name].data[slot, :rank] = a.to(self.flat)
            self.b[name].data[slot, :, :rank] = b.to(self.flat)
            self.scale[self.index[name], slot] = alpha / rank

    def read(self, values: Tensor, names: Sequence[str], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return copies of A [rank, I] and B [O, rank] of the named layers from a row [P] of this bank's layout."""
        factors = {}
        for name in names:
            place = self.columns[name]
            a = values[place.start : place.middle].unflatten(0, self.a[name].shape[1:])
            b = values[place.middle : place.end].unflatten(0, self.b[name].shape[1:])
            factors[name] = (a[:rank].clone(), b[:, :rank].contiguous().clone())
        return factors


def initial_factors(
    layers: Mapping[str, tuple[int, int]], names: Sequence[str], rank: int, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a fresh adapter as PEFT initialises it: A uniform within 1 / sqrt(I) (Kaiming, a = sqrt 5), B zero.

    The values depend on the seed, the layer's name and its shape, never on the pack or the slot.
    """
    factors = {}
    for name in names:
        inputs, outputs = layers[name]
        # 32 bits: torch's CPU generator ignores those above
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        bound = 1.0 / math.sqrt(inputs)
        a = torch.empty(rank, inputs, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
        factors[name] = (a, torch.zeros(outputs, rank, dtype=torch.float64))
    return factors


class PackedLoRALinear(nn.Module):
    """A frozen linear layer whose rows each get the update of their own adapter."""

    pack: AdapterPack

    def __init__(self, base: nn.Linear, name: str, pack: AdapterPack) -> None:
        super().__init__()
        self.base = base
        self.name = name
        # not a submodule: the pack holds the model already
        object.__setattr__(self, "pack", pack)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # the adapter would be passed over
            raise AttributeError(f"the base reads {name!r} of the layer {self.name} instead of calling it") from None

    def forward(self, x: Tensor) -> Tensor:
        """x [N, ..., I] -> [N, ..., O]; or [N * K, ..., I], where each row of the batch became K neighbours."""
        bank, pack = self.pack.bank, self.pack
        if bank is None:
            return self.base(x)
        a, b, scale = bank.a[self.name], bank.b[self.name], bank.scale[bank.index[self.name]]
        autocast = torch.is_autocast_enabled(x.device.type)
        packed = x.reshape(bank.slots if pack.runs is None else pack.runs[-1][2], -1, x.shape[-1])  # [N, T, I]
        if pack.path == "loop":
            slots = range(bank.slots) if pack.owner_index is None else pack.owner_index.tolist()
            parts = [F.linear(F.linear(row, a[s]), b[s]) * scale[s] for s, row in zip(slots, packed, strict=True)]
            y = self.base(x)
            return y + torch.stack(parts).view_as(y)
        if x.dtype != a.dtype and not autocast:
            # as PEFT does where the base is in another precision than its adapters
            y = self.base(x)
            a, b, scale = (_of_rows(t, pack.owner_index) for t in (a, b, scale))
            hidden = torch.bmm(packed.to(a.dtype), a.transpose(1, 2)) * scale[:, None, None]
            return (y + torch.bmm(hidden, b.transpose(1, 2)).view_as(y)).to(y.dtype)
        packed = packed.to(torch.get_autocast_dtype(x.device.type)) if autocast else packed
        if pack.path == "runs" and pack.runs is not None:
            y = _LinearOfRuns.apply(packed, self.base.weight, self.base.bias, a, b, scale, pack.runs)
        else:
            y = _PackedLinear.apply(packed, self.base.weight, self.base.bias, a, b, scale, pack.owner_index)
        return y.view(*x.shape[:-1], y.shape[-1])


class _LinearOfRuns(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T with products of their own for each run of rows of one adapter.

    On CPUs products of many small matrices are slower than a few larger ones, and each of their many shapes needs a
    kernel of its own. Where x is wider than y, W and A are one matrix [W; A]: a pass over x with the few columns of A
    alone costs half as much as one with those of W.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: Tensor,
        runs: Sequence[Run],
    ) -> Tensor:  # fmt: skip
        """x [N, T, I], weight [O, I], bias [O], a [S, R, I], b [S, O, R], scale [S], runs in N -> [N, T, O]."""
        (rows, length, inputs), rank, outputs = x.shape, a.shape[1], len(weight)
        ctx.dtype, ctx.runs = a.dtype, [(slot, start * length, end * length) for slot, start, end in runs]
        x = x.reshape(-1, inputs)
        scaled = (b * scale[:, None, None]).to(x.dtype)
        weight, a, bias = weight.to(x.dtype), a.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if inputs > outputs:
            both = x.new_empty(len(x), outputs + rank)
            for slot, start, end in ctx.runs:
                # for one adapter at a time: copies of a large base's weights for all would not fit
                torch.mm(x[start:end], torch.cat([weight, a[slot]]).t(), out=both[start:end])
            # copies, or what the backward pass keeps would be all of it
            hidden = both[:, outputs:].contiguous()
            y = both[:, :outputs].unflatten(0, (rows, length)).clone(memory_format=torch.contiguous_format)
            y = y if bias is None else y.add_(bias)
        else:
            y, hidden = F.linear(x.view(rows, length, inputs), weight, bias), x.new_empty(len(x), rank)
            for slot, start, end in ctx.runs:
                torch.mm(x[start:end], a[slot].t(), out=hidden[start:end])
        flat = y.view(-1, outputs)
        for slot, start, end in ctx.runs:
            flat[start:end].addmm_(hidden[start:end], scaled[slot].t())
        ctx.save_for_backward(x, weight, a, scaled, scale, hidden)
        # no view: some models change a layer's output in place, which autograd allows of none
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, scaled, scale, hidden = ctx.saved_tensors
        grad = grads[0].flatten(0, 1)
        grad_x = torch.mm(grad, weight) if ctx.needs_input_grad[0] else None
        grad_a, grad_b = (t.new_zeros(t.shape, dtype=ctx.dtype) for t in (a, scaled))
        for slot, start, end in ctx.runs:
            of_y = grad[start:end]
            of_hidden = torch.mm(of_y, scaled[slot])
            grad_a[slot] += torch.mm(of_hidden.t(), x[start:end])
            grad_b[slot] += torch.mm(hidden[start:end].t(), of_y).t()
            if grad_x is not None:
                grad_x[start:end].addmm_(of_hidden, a[slot])
        grad_x = None if grad_x is None else grad_x.unflatten(0, grads[0].shape[:2])
        return grad_x, None, None, grad_a, grad_b * scale[:, None, None], None, None


class _PackedLinear(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T of each row, forward and backward with as few passes over x and y as there are
    products: autograd would add the two products, and their gradients, in passes of their own."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: Tensor,
        owners: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x [N, T, I], weight [O, I], bias [O], a [S, R, I], b [S, O, R], scale [S], owners [N] -> [N, T, O]."""
        ctx.dtype, ctx.slots = a.dtype, len(a)
        weight, a, b, scale = (t.to(x.dtype) for t in (weight, a, b, scale[:, None, None]))
        a, b, scale = (_of_rows(t, owners) for t in (a, b, scale))
        hidden = torch.bmm(x, a.transpose(1, 2)).mul_(scale)  # [N, T, R]
        y = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        ctx.save_for_backward(x, weight, a, b, scale, hidden, owners)
        return y.baddbmm_(hidden, b.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, b, scale, hidden, owners = ctx.saved_tensors
        (grad,) = grads
        grad_hidden = torch.bmm(grad, b).mul_(scale)
        grad_x = torch.matmul(grad, weight).baddbmm_(grad_hidden, a) if ctx.needs_input_grad[0] else None
        of_rows = torch.bmm(grad_hidden.transpose(1, 2), x), torch.bmm(grad.transpose(1, 2), hidden)
        grad_a, grad_b = (g.to(ctx.dtype) for g in of_rows)
        if owners is not None:
            grad_a, grad_b = (g.new_zeros(ctx.slots, *g.shape[1:]).index_add_(0, owners, g) for g in (grad_a, grad_b))
        return grad_x, None, None, grad_a, grad_b, None, None


def _of_rows(factors: Tensor, owners: Tensor | None) -> Tensor:
    """Return the factors [S, ...] of each row's owner, [N, ...]."""
    return factors if owners is None else factors.index_select(0, owners)


def is_linear(module: nn.Module) -> bool:
    """Return whether a layer can carry an adapter: ``nn.Linear``, or transformers' ``Conv1D``, which is one as well."""
    # by its name: transformers takes seconds to import
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def as_linear(module: nn.Module) -> nn.Linear:
    """Return a layer of `is_linear` as ``nn.Linear``, with the same weights in memory."""
    if isinstance(module, nn.Linear):
        return module
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight, linear.bias = (nn.Parameter(t.detach(), requires_grad=False) for t in (weight.t(), bias))
    return linear


class AdapterPack:
    """Puts packed adapters on the chosen linear layers of a frozen model, in place.

    The model is any module whose batch rows are independent of each other. With no bank in use it is the bare base.

    Args:
        model: The frozen base; its chosen layers, ``nn.Linear`` or GPT-2's ``Conv1D``, are wrapped in place.
        target_modules: Names, or dotted endings of names, of layers to adapt; ``all-linear`` for every one. Targets
            of several jobs may be given together, ``all-linear`` among them: then every layer that any of them means.
            What a language model's text does not go through has none of them.
        path: ``bmm`` computes all rows at once, ``runs`` neighbours of one adapter together (the default on CPUs), and
            ``loop`` one row after another, the oracle that tests compare with.

    Attributes:
        layers: (in features, out features) of the wrapped layers by name.
        bank: The bank in use, or None for the bare base.
        owners: Slot of the bank that each row belongs to; None: row i belongs to slot i.
        runs: The same as runs of neighbours in a batch, whose rows may be tokens.

    Raises:
        InputError: If a target names no linear layer of the model.
    """

    def __init__(self, model: nn.Module, target_modules: Sequence[str], path: Path | None = None) -> None:
        self.model = model
        cpu = next(model.parameters()).device.type == "cpu"
        self.path: Path = path or ("runs" if cpu else "bmm")
        self.bank: AdapterBank | None = None
        self.owners: list[int] | None = None
        self.runs: list[Run] | None = None
        self._owner_index: Tensor | None = None
        head = getattr(model, "get_output_embeddings", lambda: None)()
        # of a model that reads more than text, the layers that text goes through
        inside = {id(module) for module in getattr(model, "get_decoder", lambda: model)().modules()}
        modules = dict(model.named_modules())
        linears = {name: as_linear(module) for name, module in modules.items() if is_linear(module)}
        self._linears = list(linears)
        self._transposed = {name for name in linears if not isinstance(modules[name], nn.Linear)}
        known = {name: linears[name] for name in linears if modules[name] is head or id(modules[name]) in inside}
        # As in PEFT, ``all-linear`` leaves the output head of a language model alone.
        self._all_linear = [name for name in known if modules[name] is not head]
        chosen = {name: known[name] for name in matching(known, target_modules, self._all_linear)}
        self.layers = {name: (linear.in_features, linear.out_features) for name, linear in chosen.items()}
        for name in self.layers:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PackedLoRALinear(linears[name], name, self))

    def select(self, target_modules: Sequence[str]) -> list[str]:
        """Return the wrapped layers that ``target_modules`` mean. Raises InputError where one of them means none."""
        return matching(self.layers, target_modules, self._all_linear)

    def is_transposed(self, names: Iterable[str]) -> bool:
        """Return whether layers keep their weights as [I, O], as GPT-2's do."""
        return any(name in self._transposed for name in names)

    def endings(self, names: Iterable[str]) -> list[str]:
        """Return the last parts of layers' names where they mean exactly these layers of the model, else the names.

        Servers that take PEFT adapters know layers by the last parts of their names.
        """
        names = list(names)
        leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        meant = [name for name in self._linears if name.rpartition(".")[2] in leaves]
        return leaves if sorted(meant) == sorted(names) else names

    @contextmanager
    def use(
        self, bank: AdapterBank | None, owners: Sequence[int] | None = None, tokens: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Apply ``bank`` to the batches within the block, whose rows belong to the slots ``owners``.

        With ``tokens`` the rows of a batch are tokens: so many of each owner in turn. That wants the path ``runs``: the
        others compute each token for itself.
        """
        before = self.bank, self.owners, self.runs, self._owner_index
        self._set(bank, owners, tokens)
        try:
            yield
        finally:
            self.bank, self.owners, self.runs, self._owner_index = before

    @contextmanager
    def rows(self, rows: Sequence[int], tokens: Sequence[int] | None = None) -> Iterator[None]:
        """Within the block a batch holds some of the rows, perhaps repeated; ``tokens`` as in `use`."""
        with self.use(self.bank, self.owners_of(rows), tokens):
            yield

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with batches of some of the rows, perhaps repeated, until the end of the ``use`` block."""
        if self.bank is not None:
            owners = torch.tensor(self.owners_of(rows), device=self.bank.flat.device)
            self._set(self.bank.take(owners), None)

    def owners_of(self, rows: Sequence[int]) -> list[int] | None:
        """Return the slots that some rows belong to; None where no bank is in use."""
        if self.bank is None:
            return None
        return list(rows) if self.owners is None else [self.owners[row] for row in rows]

    @property
    def owner_index(self) -> Tensor | None:
        """Slot of the bank that each row of the batch belongs to, int64 [N]; None: row i belongs to slot i."""
        if self._owner_index is None and self.runs is not None and self.bank is not None:
            slots, starts, ends = np.array(self.runs).T
            self._owner_index = to_device(np.repeat(slots, ends - starts), self.bank.flat.device)
        return self._owner_index

    def _set(self, bank: AdapterBank | None, owners: Sequence[int] | None, tokens: Sequence[int] | None = None) -> None:
        self.bank, self.owners, self.runs, self._owner_index = bank, None, None, None
        if bank is not None and owners is not None:
            self.owners, self.runs = list(owners), runs_of(owners, tokens)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return the array as a tensor on the device; to a GPU it is copied while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def runs_of(owners: Sequence[int], tokens: Sequence[int] | None = None) -> list[Run]:
    """Return the runs of equal owners, in rows, or in tokens where ``tokens`` says how many each row has."""
    runs, start = [], 0
    counts = [1] * len(owners) if tokens is None else tokens
    for owner, rows in itertools.groupby(zip(owners, counts, strict=True), key=lambda row: row[0]):
        end = start + int(sum(count for _, count in rows))
        runs.append((owner, start, end))
        start = end
    return runs


def matching(names: Mapping[str, object], targets: Sequence[str], all_linear: Sequence[str]) -> list[str]:
    """Return the names, in order, that any target means.

    A target means the name that equals it and those that end in ``.target``; ``all-linear`` means ``all_linear``.

    Raises:
        InputError: If a target means none.
    """
    meant = {
        target: all_linear
        if target == "all-linear"
        else [name for name in names if name == target or name.endswith(f".{target}")]
        for target in targets
    }
    for target, found in meant.items():
        if not found:
            endings = {name.rpartition(".")[2] for name in names} | set(names)
            nearest = did_you_mean(target, endings)
            raise InputError(f"target module {target!r} names no linear layer of the base{nearest or '.'}")
    wanted = {name for found in meant.values() for name in found}
    return [name for name in names if name in wanted]
