"""The inputs of a layer's matrices, seen while the layer runs.

Every product of hidden states with a parameter passes through one of a few functions of torch, whoever wrote
the module: a linear layer, an expert's slice of stacked weights, a batch of experts at once. They are watched
for operands that lie in a parameter's memory, so that a module needs no hook and no code of its own here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a parameter, or with a part of it.

    Attributes
    ----------
    parameter
        The parameter's name in the layer.
    slice
        The first index of a parameter of three dimensions; else 0.
    inputs_are_rows
        Whether the input's columns are the rows of the parameter's matrix: weights stored (in, out).
    first_input, first_output
        The first row and column of the matrix that take part, in these terms.
    """

    parameter: str
    slice: int
    inputs_are_rows: bool
    first_input: int = 0
    first_output: int = 0


Seen = Callable[[Product, "Tensor"], "Tensor | None"]
"""Called with a product and its input, (tokens, columns): for each slice of a batch apart. What it gives is
multiplied in place of the input, if it is not None."""


@contextlib.contextmanager
def watched(module: Any, seen: Seen) -> Iterator[None]:
    """Call `seen` for all products with the module's matrices in this thread, before they are computed."""
    parameters = {
        parameter.untyped_storage().data_ptr(): (name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.ndim in (2, 3) and not parameter.is_meta
    }
    with _mode()(parameters, seen):
        yield


def _mode() -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    linear = torch.nn.functional.linear
    # By function, the places of the input and of the matrix, and whether it is (out, in).
    products: dict[Any, tuple[int, int, bool]] = {
        linear: (0, 1, True),
        torch.addmm: (1, 2, False),
        torch.baddbmm: (1, 2, False),
        torch.Tensor.addmm: (1, 2, False),
        torch.Tensor.baddbmm: (1, 2, False),
    }
    for function in (torch.matmul, torch.bmm, torch.mm):
        products[function] = (0, 1, False)
    for function in (torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.mm, torch.Tensor.__matmul__):
        products[function] = (0, 1, False)

    class Mode(TorchFunctionMode):  # type: ignore[misc]
        def __init__(self, parameters: Mapping[int, tuple[str, Tensor]], seen: Seen) -> None:
            super().__init__()
            self.parameters, self.seen = parameters, seen

        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if (places := products.get(func)) is not None:
                operands = [*args, *kwargs.values()]
                one, other, is_out_in = places
                operands[one], operands[other] = self._seen(
                    operands[one], operands[other], is_out_in=is_out_in
                )
                args, kwargs = (
                    tuple(operands[: len(args)]), dict(zip(kwargs, operands[len(args) :], strict=True))
                )  # fmt: skip
            return func(*args, **kwargs)

        def _seen(self, states: Tensor, weights: Tensor, *, is_out_in: bool) -> tuple[Tensor, Tensor]:
            """Both operands, the input as it is to be multiplied."""
            if (found := self._parameter(weights)) is not None:
                matrix = weights if is_out_in else weights.transpose(-1, -2)
                return self._tell(states, matrix, *found), weights
            if not is_out_in and (found := self._parameter(states)) is not None:
                # W x^T: the parameter is on the left, and the states' columns are tokens.
                return states, self._tell(weights.transpose(-1, -2), states, *found).transpose(-1, -2)
            return states, weights

        def _parameter(self, operand: Tensor) -> tuple[str, Tensor] | None:
            return self.parameters.get(operand.untyped_storage().data_ptr())

        def _tell(self, states: Tensor, matrix: Tensor, name: str, parameter: Tensor) -> Tensor:
            """The states to be multiplied. `matrix` is (..., out, in), a view of the parameter."""
            matrices = matrix.reshape(-1, *matrix.shape[-2:]) if matrix.ndim > 2 else matrix[None]
            n = matrices.shape[0]
            inputs = (
                states.reshape(n, -1, states.shape[-1]) if n > 1 else states.reshape(1, -1, states.shape[-1])
            )
            width, size = parameter.shape[-1], parameter.shape[-1] * parameter.shape[-2]
            others: dict[int, Tensor] = {}
            for k in range(n):
                one = matrices[k]
                slice_, rest = divmod(one.storage_offset() - parameter.storage_offset(), size)
                row, column = divmod(rest, width)
                swapped = one.shape[0] > 1 and one.stride(0) == 1 and one.stride(1) != 1
                first = (row, column) if swapped else (column, row)
                other = self.seen(Product(name, slice_, swapped, *first), inputs[k].detach())
                if other is not None:
                    others[k] = other
            if not others:
                return states
            return torch.stack([others.get(k, inputs[k]) for k in range(n)]).reshape(states.shape)

    return Mode
