"""Our kernels beside PyTorch's fused attention on the same GPU, in turns, as CUDA graphs.

PyTorch's scaled_dot_product_attention chooses among FlashAttention, cuDNN's and a memory-efficient
kernel; each that takes the mask is timed. Results are checked against float64 first. PyTorch must
be compiled for the GPU; without it nothing here is run.

    python -m tools.device.torch_peers --batch 1 --batch 64
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from metal_edge.errors import UnavailableError
from metal_edge.export.masked_attention import Fill
from tools.device.launches import BLOCK, HEAD_DIMS, PRECISIONS
from tools.kernels import block as fused_block
from tools.kernels.attention import Buffers, UnsupportedError, prepare
from tools.kernels.evidence import fused
from tools.kernels.evidence.problems import Problem, problems
from tools.kernels.gpu import GpuBlock, GpuLibrary
from tools.results.command import run_command

HELP = """Time our attention kernels beside PyTorch's on this machine's GPU."""
_FLUSH = 512 << 20  # bytes: more than any L2, and long enough for the CPU to stay ahead
_FLUSH_US = 1000.0  # with all that belongs to a measurement
_IN_A_ROW = 20
_LONG_US = 500.0  # of which two in a row are enough
_WARM_UPS = 5
_LEAST_TURNS = 5
_BUDGET_S = 0.5  # of one problem

Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation of one problem.

    Attributes:
        problem, precision, batch: what.
        who: "ours", or whose.
        error: largest distance from float64, over the largest number there; int8: in steps.
        cold: microseconds, median of single launches after L2 was overwritten.
        warm: of launches in a row.
    """

    problem: str
    precision: str
    batch: int
    who: str
    error: float
    cold: float
    warm: float


def compare(batches: list[int], repeats: int) -> list[Row]:
    """All problems of docs/kernels.md, and the block.

    Raises:
        UnavailableError: no PyTorch that finds a GPU.
    """
    torch = _torch()
    library, rows = GpuLibrary(HEAD_DIMS), []
    for batch in batches:
        for problem in problems():
            for precision in PRECISIONS:
                works, truth = _attention(torch, library, problem, precision, batch)
                rows += _measured(torch, (problem.name, precision, batch), works, truth, repeats)
            if problem.name == BLOCK:
                works, truth = _block(torch, problem, batch)
                name = f"{problem.name}, its whole block"
                rows += _measured(torch, (name, "fp16", batch), works, truth, repeats)
    return rows


def _torch() -> Any:
    try:
        import torch  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError("PyTorch is not installed", "install it for CUDA") from error
    if not torch.cuda.is_available():
        raise UnavailableError("PyTorch finds no GPU", "install it for CUDA")
    return torch


def _attention(
    torch: Any, library: GpuLibrary, problem: Problem, precision: str, batch: int
) -> tuple[dict[str, tuple[Work, Any]], Any]:
    """Works with their outputs [B, N, W], and the exact result; int8: in steps of the output."""
    spec, width = problem.typed(precision), problem.spec.heads * problem.head_dim
    dtype = {"fp16": torch.float16, "int8": torch.int8, "fp32": torch.float32}[precision]
    together = problem.queries == problem.keys
    shapes = [(batch, problem.queries, (3 if together else 1) * width)]
    shapes += [] if together else [(batch, problem.keys, 2 * width)]
    torch.manual_seed(5)
    real = [torch.randn(shape, device="cuda") for shape in shapes]
    step = 1.0 if spec.int8 is None else spec.int8.q
    given = [(each / step).round().clamp(-127, 127) if spec.int8 else each for each in real]
    tensors = [each.to(dtype) for each in given]
    parts = list(tensors[0].split(width, -1)) if together else [
        tensors[0], *tensors[1].split(width, -1)
    ]  # fmt: skip
    heads = [each.unflatten(-1, (spec.heads, problem.head_dim)).transpose(1, 2) for each in parts]
    mask = torch.from_numpy(spec.allowed.copy()).cuda()
    bias = None if spec.bias is None else torch.from_numpy(np.ascontiguousarray(spec.bias)).cuda()
    exact = _exact(torch, [each.double() * step for each in heads], mask, bias, spec.fill)
    works: dict[str, tuple[Work, Any]] = {}
    try:
        works["ours"] = _ours(torch, library, problem, precision, tensors)
    except UnsupportedError:
        return {}, exact
    if precision == "int8":
        assert spec.int8 is not None  # noqa: S101 - typed() gave them
        return works, (exact / spec.int8.out).clamp(-128, 127)
    if spec.fill is Fill.ZERO:
        works["PyTorch, composed"] = _composed(torch, heads, mask)
    else:
        works |= _fused(torch, heads, mask, bias)
    return works, exact


def _exact(torch: Any, heads: list[Any], mask: Any, bias: Any, fill: Fill) -> Any:
    q, k, v = (each.double() for each in heads)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias.double()
    scores = scores * mask if fill is Fill.ZERO else scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _ours(
    torch: Any, library: GpuLibrary, problem: Problem, precision: str, tensors: list[Any]
) -> tuple[Work, Any]:
    call = prepare(library, [each.cpu().numpy() for each in tensors], problem.typed(precision))
    batch, width = tensors[0].shape[0], problem.spec.heads * problem.head_dim
    out = torch.empty(batch, problem.queries, width, dtype=tensors[0].dtype, device="cuda")
    kept = [
        torch.from_numpy(each.view(np.uint8).reshape(-1).copy()).cuda()
        for each in (call.mask, call.tiles, *([call.slopes] if problem.spec.slopes else []))
    ]
    q, k, v = (tensors[index].data_ptr() + offset for index, offset in call.places)
    words = [each.data_ptr() for each in kept]
    buffers = Buffers(q, k, v, out.data_ptr(), *words, *([] if problem.spec.slopes else [None]))
    launch = library.launcher(call.problem, buffers)

    def work(_alive: Any = (kept, tensors)) -> None:
        launch(torch.cuda.current_stream().cuda_stream)

    return work, out


def _composed(torch: Any, heads: list[Any], mask: Any) -> tuple[Work, Any]:
    q, k, v = heads
    batch, count, tokens, head_dim = q.shape
    out = torch.empty(batch, tokens, count * head_dim, dtype=q.dtype, device="cuda")

    def work() -> None:
        scores = (q @ k.transpose(-1, -2)) * (head_dim**-0.5) * mask
        result = scores.softmax(-1) @ v
        out.copy_(result.transpose(1, 2).flatten(2))

    return work, out


def _fused(torch: Any, heads: list[Any], mask: Any, bias: Any) -> dict[str, tuple[Work, Any]]:
    """PyTorch's kernels that take this mask; all that a model needs is a view of the result."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415

    size = (*heads[0].shape[:3], heads[1].shape[2])
    added: Any = None
    if bias is not None or not bool(mask.all()):
        added = torch.zeros(mask.shape, device="cuda") if bias is None else bias.float()
        added = added.masked_fill(~mask, -torch.inf).to(heads[0].dtype)
        rows = (
            -(-size[3] // 8) * 8
        )  # the memory-efficient kernel wants rows at multiples of 16 bytes
        padded = torch.zeros(*added.shape[:-1], rows, dtype=added.dtype, device="cuda")
        padded[..., : size[3]] = added
        added = padded[..., : size[3]].expand(size)
    works: dict[str, tuple[Work, Any]] = {}
    for name, backend in (
        ("FlashAttention", SDPBackend.FLASH_ATTENTION),
        ("cuDNN", SDPBackend.CUDNN_ATTENTION),
        ("memory-efficient", SDPBackend.EFFICIENT_ATTENTION),
        ("composed", SDPBackend.MATH),
    ):

        def call(backend: Any = backend) -> Any:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=added)

        try:
            with warnings.catch_warnings(action="ignore"):  # they say what the error says
                call()
        except RuntimeError:  # this one does not take such a mask, type or head
            continue
        held: list[Any] = []

        def work(call: Any = call, held: list[Any] = held) -> None:
            held[:] = [call()]

        works[f"PyTorch, {name}"] = (work, held)
    return works


def _block(torch: Any, problem: Problem, batch: int) -> tuple[dict[str, tuple[Work, Any]], Any]:
    """The whole ZeroLeak attention: one launch; PyTorch's operators; they with our attention."""
    case = fused.case(problem, batch)
    given = {name: torch.from_numpy(each).cuda() for name, each in case.tensors.items()}
    spec, width = problem.spec, problem.spec.heads * problem.head_dim
    mask = torch.from_numpy(spec.allowed.copy()).cuda()
    functional = torch.nn.functional

    def split(tensor: Any) -> Any:
        return tensor.unflatten(-1, (spec.heads, problem.head_dim)).transpose(1, 2)

    def around(t: dict[str, Any], attend: Callable[[Any, Any], Any]) -> Any:
        content = functional.layer_norm(
            t["content"], (width,), t["gamma"], t["beta"], case.spec.epsilon
        )
        key_value = functional.linear(content, t["w_kv"], t["b_kv"])
        return t["residual"] + functional.linear(
            attend(t["query"], key_value), t["w_out"], t["b_out"]
        )

    exact_inputs = {name: each.double() for name, each in given.items()}

    def exactly(query: Any, key_value: Any) -> Any:
        heads = [split(each) for each in (query, *key_value.split(width, -1))]
        return _exact(torch, heads, mask, None, spec.fill)

    exact = around(exact_inputs, exactly)
    works: dict[str, tuple[Work, Any]] = {"ours": _our_block(torch, case, given, batch)}
    added = torch.zeros(problem.queries, 72, dtype=torch.float16, device="cuda")
    added = added.masked_fill(~mask[0], -torch.inf)

    def natively(query: Any, key_value: Any) -> Any:
        q, k, v = (split(each) for each in (query, *key_value.split(width, -1)))
        q = q.expand(batch, -1, -1, -1)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
        return out.transpose(1, 2).flatten(2)

    held: list[Any] = []

    def native() -> None:
        held[:] = [around(given, natively)]

    works["PyTorch, separate kernels"] = (native, held)
    return works, exact


def _our_block(
    torch: Any, case: fused_block.Case, given: dict[str, Any], batch: int
) -> tuple[Work, Any]:
    ours = GpuBlock()
    arrays = {
        name: torch.from_numpy(each.view(np.uint8).reshape(-1).copy()).cuda()
        for name, each in ours.memory(case).items()
        if name not in given
    }
    out = torch.empty(case.out_shape, dtype=torch.float16, device="cuda")
    words = {name: each.data_ptr() for name, each in (arrays | given).items()}
    launch = ours.launcher(case.problem, fused_block.Buffers(**words | {"out": out.data_ptr()}))

    def work(_alive: Any = (ours, arrays, given)) -> None:
        launch(torch.cuda.current_stream().cuda_stream)

    return work, out


def _measured(
    torch: Any,
    what: tuple[str, str, int],
    works: dict[str, tuple[Work, Any]],
    exact: Any,
    repeats: int,
) -> list[Row]:
    errors: dict[str, float] = {}
    if not works:
        return []
    for who, (work, out) in works.items():
        work()
        torch.cuda.synchronize()
        errors[who] = _error(out, exact)
    times = _times(torch, {who: work for who, (work, _) in works.items()}, repeats)
    return [Row(*what, who, errors[who], *times[who]) for who in works]


def _error(out: Any, exact: Any) -> float:
    result = out[0] if isinstance(out, list) else out
    if result.ndim == 4:  # [B, heads, N, head_dim]
        result = result.transpose(1, 2).flatten(2)
    error = float((result.double() - exact).abs().max())
    return error if not result.is_floating_point() else error / float(exact.abs().max())


def _times(torch: Any, works: dict[str, Work], repeats: int) -> dict[str, tuple[float, float]]:
    """Microseconds, cold and warm; fewer turns where they would take long."""
    flush = torch.empty(_FLUSH, dtype=torch.uint8, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(graph: Any, flushed: bool) -> float:
        flush.fill_(1)  # the CPU queues the rest meanwhile
        if not flushed:
            graph.replay()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return 1000.0 * float(begin.elapsed_time(end))

    once = {who: _graph(torch, work, 1) for who, work in works.items()}
    guess = {who: max(timed(graph, True), timed(graph, True)) for who, graph in once.items()}
    count = {who: _IN_A_ROW if us < _LONG_US else 2 for who, us in guess.items()}
    many = {who: _graph(torch, work, count[who]) for who, work in works.items()}
    turn_s = 1e-6 * sum(_FLUSH_US + us * (1 + 2 * count[who]) for who, us in guess.items())
    turns = int(min(repeats, max(_LEAST_TURNS, _BUDGET_S / turn_s)))
    cold: dict[str, list[float]] = {who: [] for who in works}
    warm: dict[str, list[float]] = {who: [] for who in works}
    for turn in range(-_WARM_UPS, turns):
        for who in works:
            one, several = timed(once[who], True), timed(many[who], False) / count[who]
            if turn >= 0:
                cold[who].append(one)
                warm[who].append(several)
    return {who: (float(np.median(cold[who])), float(np.median(warm[who]))) for who in works}


def _graph(torch: Any, work: Work, times: int) -> Any:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph


def table(rows: list[Row]) -> str:
    """Markdown: a line per problem, ours first, the fastest other beside it."""
    lines = [
        "| batch | problem | | ours, us | in a row | the fastest other | us | in a row | ours is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = list(dict.fromkeys((row.batch, row.problem, row.precision) for row in rows))
    for key in keys:
        of = [row for row in rows if (row.batch, row.problem, row.precision) == key]
        ours = next(row for row in of if row.who == "ours")
        others = [row for row in of if row is not ours]
        left = f"| {key[0]} | {key[1]} | {key[2]} | {ours.cold:.2f} | {ours.warm:.2f} |"
        if not others:
            lines.append(f"{left} | | | |")
            continue
        best = min(others, key=lambda row: row.warm)
        lines.append(
            f"{left} {best.who} | {best.cold:.2f} | {best.warm:.2f} |"
            f" {best.warm / ours.warm:.2f} x as fast |"
        )
    return "\n".join(lines)


def command(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images; again for more.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed launches.")] = 100,
    out: Annotated[Path | None, typer.Option(help="All rows as JSON.")] = None,
) -> None:
    """See HELP."""
    rows = compare(batch or [1], repeats)
    if out is not None:
        text = json.dumps([{n: getattr(r, n) for n in Row.__slots__} for r in rows], indent=1)
        out.write_text(text + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    raise SystemExit(run_command(command, "python -m tools.device.torch_peers", HELP))
