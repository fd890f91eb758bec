"""Every kernel compiled to machine code for a data-centre GPU, which needs none: the interpreter forgives too much."""

import re
from typing import Any

import pytest
import torch
from krea_model.spans import Spans

pytest.importorskip("triton", minversion="3.5")

from krea_model.kernels import fused, launch, triton_gates, triton_heads, triton_norm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"}
WIDE = re.compile(r"(?:ld|st)\.global\S*\.v4\.b32")  # 16 bytes at once


def compiled(kernel: JITFunction, given: dict[str, Any], options: dict[str, Any]) -> Any:
    """For compute capability 9.0, with the types and divisibilities of a launch with these arguments."""
    signature, constants, divisible = {}, {}, {}
    for i, (name, value) in enumerate(given.items()):
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            divisible[(i,)] = [["tt.divisibility", 16]]
        elif name.isupper() or value == 1:
            signature[name], constants[(i,)] = "constexpr", value
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
            if isinstance(value, int) and value % 16 == 0 and name not in ("tokens", "rows", "slots"):
                divisible[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.fixture
def launched(monkeypatch, tmp_path) -> dict[str, Any]:
    """Every launch is compiled, not carried out: results by module and kernel."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: dict[str, Any] = {}
    for module in (triton_norm, triton_heads, triton_gates):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction) and name.endswith("_kernel"):

                def run(*args: Any, kernel: JITFunction = kernel, key: str = f"{module.__name__}.{name}", **named: Any):
                    names = kernel.arg_names
                    options = {key: value for key, value in named.items() if key not in names}
                    inputs = {**dict(zip(names, args, strict=False)), **named}
                    found[key] = compiled(kernel, {name: inputs[name] for name in names}, options)

                monkeypatch.setattr(module, name, Launcher(run))
    monkeypatch.setattr(launch, "_processors", lambda device: 132)
    return found


class Launcher:
    """Stands for a kernel: `launcher[grid](...)`."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.run


def test_every_kernel_compiles_and_moves_16_bytes_at_once(launched):
    def blank(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16).requires_grad_()

    spans, (scale, shift, gate) = Spans.of([32, 96]), blank(2, 3 * 1792).chunk(3, -1)
    weight, rope = torch.zeros(1792).requires_grad_(), torch.zeros(128, 64, 2)
    x, y, heads = blank(128, 1792), blank(128, 1792), blank(128, 14, 128)
    outs = [
        fused.rms_norm_modulate(x, weight, scale, shift, spans),
        fused.norm_rotate(heads, weight[:128], rope).flatten(-2),
        fused.swiglu(x, y),
        fused.gated_residual(x, y, gate, spans),
    ]
    torch.stack(outs).sum().backward()
    assert len(launched) == 10
    for name, kernel in launched.items():
        assert kernel.asm["cubin"], name
        assert WIDE.search(kernel.asm["ptx"]), name
        if "collect" not in name:  # every wide tensor is read and written in whole 16 bytes
            assert len(WIDE.findall(kernel.asm["ptx"])) >= 3, name
