"""Write a module as an ONNX file, check it and run it; tests are skipped where rwkvseg[export] is absent."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn


def write_onnx(module: nn.Module, example: tuple[Tensor, ...], sizes: tuple[Any, ...], path: Path) -> None:
    """Export `module` to `path`; `sizes` names the symbolic axes of each argument. Warnings stay errors."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="ONNX export needs the extra packages of rwkvseg[export]")
    with warnings.catch_warnings(), numbers_remembered():
        # torch 2.13 warns of itself
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        torch.onnx.export(
            module.eval(),
            example,
            path,
            dynamo=True,
            dynamic_shapes=sizes,
            external_data=False,
            verbose=False,
        )


@contextmanager
def numbers_remembered() -> Iterator[None]:
    """Let sympy find out once whether an expression is a number: torch asks a million times."""
    from sympy.core.expr import Expr

    find: Any = Expr.is_number.fget
    with mock.patch.object(Expr, "is_number", property(lru_cache(maxsize=None)(find))):
        yield


def check_onnx(path: Path) -> None:
    """The file is valid, and a standard runtime without control flow can run it."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not {node.op_type for node in model.graph.node} & {"If", "Loop", "Scan"}
    assert len(model.functions) == 0


def open_onnx(path: Path) -> Callable[..., Tensor]:
    """Return the first output of the file as a function of its inputs."""
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="it runs the model; it comes with rwkvseg[export]"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [part.name for part in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run
