"""batch_norm_act: forms against formulas and torch in float64, statistics over steps, layouts, refusals."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fused_cases import assert_as_good, errors, on_every_place, random, run, spread, with_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rwkvseg.errors import BackendError, ShapeError, UsageError
from rwkvseg.ops import batch_norm_act
from rwkvseg.ops.backends import triton_is_installed, why_not_triton
from rwkvseg.ops.fused import operators
from rwkvseg.ops.fused import batch_norm_operators as own_operators
from rwkvseg.ops.fused.batch_norm import naive_batch_norm_act
