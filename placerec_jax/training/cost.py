"""What a function costs, read from its jaxpr: nothing is compiled or run.

XLA's own count ignores how often a loop body runs; here a scan counts its length. The conventions:

- MACs: multiply-accumulates of matrix products and convolutions. Zeros of padding count, those that
  dilation inserts do not.
- FLOPs: two per MAC, one per element of elementwise arithmetic, reductions and scatters; 5 n log2 n of an
  FFT, 2/3 n^3 of an LU factorisation, n^2 per right-hand side of a triangular solve.
- Activation bytes: the outputs of the equations that compilers do not fuse into their neighbours: products,
  convolutions, reductions, pooling, gathers, scatters, sorts, FFTs. Elementwise chains count as fused into
  them, reshapes, slices and concatenations as free.
- Moved bytes: what those equations read, parameters included, plus what they write: a floor of the memory
  traffic.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# fmt: off
ELEMENTWISE = frozenset({
    "abs", "add", "add_any", "atan2", "cbrt", "ceil", "clamp", "cos", "cosh", "cumlogsumexp", "cummax",
    "cummin", "cumprod", "cumsum", "digamma", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "floor", "integer_pow", "lgamma", "log", "log1p", "logistic", "max", "min", "mul", "neg",
    "nextafter", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square",
    "sub", "tan", "tanh",
})
REDUCTIONS = frozenset({
    "argmax", "argmin", "reduce", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum",
})
WINDOWS = frozenset({"reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"})
SCATTERS = frozenset({
    "scatter", "scatter_add", "scatter_max", "scatter_min", "scatter_mul", "select_and_scatter_add",
})
MOVERS = frozenset({"gather", "sort", "top_k"})
# Real work for which there is no formula here: reported, not guessed.
UNKNOWN = frozenset({
    "cholesky", "eig", "eigh", "ffi_call", "householder_product", "pallas_call", "qr", "schur",
    "svd", "tridiagonal",
})
# fmt: on


@dataclasses.dataclass(frozen=True)
class Cost:
    """Sums over equations; see the module's docstring for what each one counts."""

    macs: int = 0
    flops: int = 0
    activation_bytes: int = 0
    moved_bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self.astuple(), other.astuple(), strict=True)))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * a for a in self.astuple()))

    def astuple(self) -> tuple[int, int, int, int]:
        """(macs, flops, activation_bytes, moved_bytes)."""
        return self.macs, self.flops, self.activation_bytes, self.moved_bytes


@dataclasses.dataclass(frozen=True)
class FunctionCost:
    """Costs by path of named scopes and Flax modules, and the primitives whose cost is not known."""

    by_path: dict[tuple[str, ...], Cost]
    unknown: tuple[str, ...]

    @property
    def total(self) -> Cost:
        """The sum over all paths."""
        return sum(self.by_path.values(), Cost())

    def by_component(self, root: str = "", depth: int = 1) -> dict[str, Cost]:
        """Costs by the leading `depth` parts of the path, in the order of first use.

        `root` is the class name of the outermost module, which every path starts with; what that module does
        outside of its submodules is listed under the method that does it.
        """
        components: dict[str, Cost] = collections.defaultdict(Cost)
        for path, cost in self.by_path.items():
            components["/".join(_component(path, root)[:depth]) or "other"] += cost
        return dict(components)


def function_cost(function: Callable[..., Any], *arguments: Any) -> FunctionCost:
    """The cost of `function(*arguments)`; arguments are pytrees of arrays or of `jax.ShapeDtypeStruct`.

    A loop whose number of turns is not in the jaxpr (`while`) is counted as one turn and listed as unknown;
    of the branches of a `cond`, the one with the most FLOPs counts.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # as every compiler does
    by_path: dict[tuple[str, ...], Cost] = collections.defaultdict(Cost)
    unknown: dict[str, None] = {}
    for path, cost, reason in _walk(jaxpr, ()):
        by_path[path] += cost
        if reason:
            unknown[reason] = None
    return FunctionCost(dict(by_path), tuple(unknown))


def _walk(jaxpr: core.Jaxpr, outer: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Cost, str]]:
    """(path, cost, what is unknown or '') of every equation, those of called functions included."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        # The stack of an inner jaxpr starts anew, at the equation that holds it.
        path = outer + tuple(str(equation.source_info.name_stack).split("/"))
        if name == "scan":
            for inner_path, cost, reason in _walk(equation.params["jaxpr"].jaxpr, path):
                yield inner_path, cost * equation.params["length"], reason
        elif name == "while":
            yield path, Cost(), "while"
            yield from _walk(equation.params["body_jaxpr"].jaxpr, path)
        elif name == "cond":
            branches = [list(_walk(branch.jaxpr, path)) for branch in equation.params["branches"]]
            yield from max(branches, key=lambda branch: sum(cost.flops for _, cost, _ in branch))
        elif name in UNKNOWN:
            yield path, Cost(), name
        elif (formula := _formula(name)) is not None:
            yield path, formula(equation), ""
        else:
            # jit, remat, custom derivatives: whatever calls a jaxpr. Data movement has none and costs
            # nothing.
            for inner in core.jaxprs_in_params(equation.params):
                yield from _walk(inner, path)


def _formula(name: str) -> Callable[[core.JaxprEqn], Cost] | None:
    if name == "dot_general":
        return _dot_general
    if name == "conv_general_dilated":
        return _convolution
    if name == "fft":
        return _fft
    if name == "lu":
        return lambda equation: _unfused(equation, flops=_size(equation.invars[0]) * _side(equation) * 2 // 3)
    if name == "triangular_solve":
        return lambda equation: _unfused(equation, flops=_size(equation.invars[1]) * _side(equation))
    if name in ELEMENTWISE:
        return lambda equation: Cost(flops=_size(equation.outvars[0]))
    if name in REDUCTIONS:
        return lambda equation: _unfused(equation, flops=_size(equation.invars[0]))
    if name in WINDOWS:
        return lambda equation: _unfused(
            equation, flops=_size(equation.outvars[0]) * math.prod(equation.params["window_dimensions"])
        )
    if name.replace("-", "_") in SCATTERS:
        updates = 0 if name == "select_and_scatter_add" else 2
        return lambda equation: _unfused(equation, flops=_size(equation.invars[updates]))
    if name in MOVERS:
        return _unfused
    return None


def _dot_general(equation: core.JaxprEqn) -> Cost:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return _unfused(equation, macs=_size(equation.outvars[0]) * math.prod(lhs[i] for i in contracted))


def _convolution(equation: core.JaxprEqn) -> Cost:
    # A weight's input axis already is the width of one group. Dilating the input is how strided convolutions
    # are differentiated: of the taps on the dilated grid only one in prod(dilation) meets a value.
    output_axis = equation.params["dimension_numbers"].rhs_spec[0]
    weight = equation.invars[1].aval.shape
    taps = math.prod(weight) // weight[output_axis]
    macs = _size(equation.outvars[0]) * taps // math.prod(equation.params["lhs_dilation"])
    return _unfused(equation, macs=macs)


def _fft(equation: core.JaxprEqn) -> Cost:
    length = math.prod(equation.params["fft_lengths"])
    kind = equation.params["fft_type"].name
    size = _size(equation.outvars[0] if kind == "IRFFT" else equation.invars[0])
    per_value = 5 if kind in ("FFT", "IFFT") else 2.5  # real transforms take half
    return _unfused(equation, flops=round(per_value * size * math.log2(max(length, 2))))


def _unfused(equation: core.JaxprEqn, macs: int = 0, flops: int = 0) -> Cost:
    read = sum(_bytes(variable) for variable in equation.invars)
    written = sum(_bytes(variable) for variable in equation.outvars)
    return Cost(macs, 2 * macs + flops, written, read + written)


def _side(equation: core.JaxprEqn) -> int:
    """n of the first input, (..., n, n)."""
    return equation.invars[0].aval.shape[-1]


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _bytes(variable: Any) -> int:
    return _size(variable) * variable.aval.dtype.itemsize


def _component(path: tuple[str, ...], root: str) -> list[str]:
    """Names of submodules and scopes on a path; outside of them, the method of the root module."""
    methods, inside = [], []
    for part in path:
        # 'transpose(jvp(Model))' -> 'Model', 'vmap()' -> ''
        name = re.sub(r"^(?:\w+\()*([^()]*)\)*$", r"\1", part)
        if name.startswith(f"{root}."):
            methods.append(name.removeprefix(f"{root}."))
        # An einsum names its scope by its equation, and rematerialisation the second pass.
        elif name.isidentifier() and name not in (root, "rematted_computation"):
            inside.append(name)
    return inside or methods[-1:]
