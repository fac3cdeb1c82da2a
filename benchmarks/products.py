"""How fast libraries read weights: a chain of products with few rows, as sampling asks for them.

Prints GB of weights a second by rows for the project's kernels, torch (eager, compiled with frozen
weights, its packed integers), torchao, OpenVINO and ONNX Runtime; what is not installed is left
out. The last line is JSON, with the speed of plain reading in the same run. Every way has its own
rounding; only the time is compared here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import time
from collections.abc import Callable

import torch
from generate import read_bandwidth
from torch import Tensor, nn

from nextstep.kernels.linear import PackedLinear, WeightBuffer

Call = Callable[[], object]
Maker = Callable[[list[Tensor], int], Call]
"""Weights [N, N] of the layers and a number of rows -> one pass through the chain."""

BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
GROUP = 64
"""Inputs that share a scale in 4 bits."""


def _x(weights: list[Tensor], rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, len(weights[0])).to(dtype)


def _chain(weights: list[Tensor], dtype: torch.dtype) -> nn.Sequential:
    layers = nn.Sequential(*(nn.Linear(len(w), len(w), bias=False) for w in weights))
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return layers.to(dtype).eval()


def kernels(format_: str) -> Maker:
    """The project's own."""

    def make(weights: list[Tensor], rows: int) -> Call:
        buffer = WeightBuffer()
        layers = [PackedLinear(weight, None, format_, buffer) for weight in weights]
        x = _x(weights, rows)
        return lambda: [layer(x) for layer in layers]

    return make


def eager(dtype: torch.dtype) -> Maker:
    """torch as it is."""

    def make(weights: list[Tensor], rows: int) -> Call:
        layers, x = _chain(weights, dtype), _x(weights, rows, dtype)
        return lambda: layers(x)

    return make


def frozen(dtype: torch.dtype) -> Maker:
    """torch.compile with weights as constants, so that they can be laid out anew."""

    def make(weights: list[Tensor], rows: int) -> Call:
        import torch._inductor.config as inductor

        inductor.freezing = True
        torch._dynamo.reset()
        layers, x = torch.compile(_chain(weights, dtype)), _x(weights, rows, dtype)
        return lambda: layers(x)

    return make


def torch_int8(weights: list[Tensor], rows: int) -> Call:
    """torch's packed 8 bits, one scale an output."""
    layers = []
    for weight in weights:
        scale = weight.abs().amax(dim=1) / 127
        layers.append(((weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()))
    x = _x(weights, rows, torch.bfloat16)
    return lambda: [torch._weight_int8pack_mm(x, whole, scale) for whole, scale in layers]


def torch_int4(weights: list[Tensor], rows: int) -> Call:
    """torch's packed 4 bits."""
    layers = []
    for weight in weights:
        whole = torch.randint(0, 16, weight.shape, dtype=torch.int32)
        packed = torch._convert_weight_to_int4pack_for_cpu(whole, 2)
        scales = torch.rand(len(weight) // GROUP, len(weight), 2).bfloat16()
        layers.append((packed, scales))
    x = _x(weights, rows, torch.bfloat16)
    pack = torch._weight_int4pack_mm_for_cpu
    return lambda: [pack(x, packed, GROUP, scales) for packed, scales in layers]


def torchao(bits: int) -> Maker:
    """Weight-only, compiled as its documents advise."""

    def make(weights: list[Tensor], rows: int) -> Call:
        import torch._inductor.config as inductor
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        inductor.freezing = True
        torch._dynamo.reset()
        layers = _chain(weights, torch.bfloat16)
        four = IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP))
        quantize_(layers, four if bits == 4 else Int8WeightOnlyConfig())
        compiled, x = torch.compile(layers), _x(weights, rows, torch.bfloat16)
        return lambda: compiled(x)

    return make


def openvino(format_: str) -> Maker:
    """OpenVINO, weights rounded by nncf where they are integers."""

    def make(weights: list[Tensor], rows: int) -> Call:
        import openvino as ov
        from openvino.properties.hint import inference_precision

        x = _x(weights, rows)
        model = ov.convert_model(_chain(weights, torch.float32), example_input=x, input=[x.shape])
        if format_ in ("int8", "int4"):
            import nncf

            four = nncf.CompressWeightsMode.INT4_SYM
            mode = four if format_ == "int4" else nncf.CompressWeightsMode.INT8_SYM
            group = {"group_size": GROUP, "all_layers": True} if format_ == "int4" else {}
            with contextlib.redirect_stdout(io.StringIO()):  # it draws tables
                model = nncf.compress_weights(model, mode=mode, **group)
        config = {
            inference_precision: ov.Type.f32 if format_ == "fp32" else ov.Type.bf16,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        request = ov.compile_model(model, "CPU", config).create_infer_request()
        request.set_input_tensor(ov.Tensor(x.numpy()))
        return request.infer

    return make


def onnx(bits: int) -> Maker:
    """ONNX Runtime: MatMul in fp32, or MatMulNBits."""

    def make(weights: list[Tensor], rows: int) -> Call:
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        n = len(weights[0])
        shape = [rows, n]
        model = helper.make_model(
            helper.make_graph(
                [
                    helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"])
                    for i in range(len(weights))
                ],
                "chain",
                [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
                [helper.make_tensor_value_info(f"x{len(weights)}", TensorProto.FLOAT, shape)],
                [
                    numpy_helper.from_array(weight.T.contiguous().numpy(), f"w{i}")
                    for i, weight in enumerate(weights)
                ],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        if bits < 32:
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            quantizer = MatMulNBitsQuantizer(
                model, bits=bits, block_size=GROUP, is_symmetric=True, accuracy_level=4
            )
            quantizer.process()
            model = quantizer.model.model
        written = io.BytesIO()
        onnx.save(model, written)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(written.getvalue(), options)
        x = _x(weights, rows).numpy()
        return lambda: session.run(None, {"x0": x})

    return make


WAYS: dict[str, tuple[str, str | None, Maker]] = {
    **{f"kernels, {f}": (f, None, kernels(f)) for f in BYTES},
    "torch, fp32": ("fp32", None, eager(torch.float32)),
    "torch, bf16": ("bf16", None, eager(torch.bfloat16)),
    "torch compiled, fp32": ("fp32", None, frozen(torch.float32)),
    "torch compiled, bf16": ("bf16", None, frozen(torch.bfloat16)),
    "torch packed, int8": ("int8", None, torch_int8),
    "torch packed, int4": ("int4", None, torch_int4),
    "torchao, int8": ("int8", "torchao", torchao(8)),
    "torchao, int4": ("int4", "torchao", torchao(4)),
    **{f"OpenVINO, {f}": (f, "openvino", openvino(f)) for f in BYTES},
    "ONNX Runtime, fp32": ("fp32", "onnxruntime", onnx(32)),
    "ONNX Runtime, int8": ("int8", "onnxruntime", onnx(8)),
    "ONNX Runtime, int4": ("int4", "onnxruntime", onnx(4)),
}
"""Name -> (format of the weights, the package it needs, how a chain is made)."""


def measure(make: Maker, weights: list[Tensor], rows: int, repeats: int) -> float:
    """Least seconds of a pass."""
    with torch.inference_mode():
        call = make(weights, rows)
        for _ in range(3):
            call()
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 16])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--ways", nargs="+", help="beginnings of names, e.g. kernels OpenVINO")
    asked = parser.parse_args()
    weights = [torch.randn(asked.width, asked.width) * 0.02 for _ in range(asked.layers)]
    found: dict[str, object] = {"reading": round(read_bandwidth("wall") / 1e9, 1)}
    print(f"reading alone: {found['reading']} GB/s")
    print(f"{'rows':<22}" + "".join(f"{rows:>8}" for rows in asked.rows))
    for name, (format_, package, make) in WAYS.items():
        if asked.ways and not name.startswith(tuple(asked.ways)):
            continue
        if package and importlib.util.find_spec(package) is None:
            print(f"{name:<22}  {package} is not installed")
            continue
        size = asked.layers * asked.width**2 * BYTES[format_]
        speeds = [
            round(size / measure(make, weights, rows, asked.repeats) / 1e9, 1)
            for rows in asked.rows
        ]
        found[name] = dict(zip(map(str, asked.rows), speeds, strict=True))
        print(f"{name:<22}" + "".join(f"{speed:>8}" for speed in speeds), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
