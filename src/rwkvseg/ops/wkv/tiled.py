"""Bi-WKV through Triton: two custom operators, and how they cut the work for the kernels.

A program takes a span, some chunks of tokens, of some channels. A forward pass is one launch while a sequence
fits in a span, two up to 64 spans and three beyond; a backward pass is one more, the sum of gw and gu over
images and spans. Saved for it: the four inputs and, per image and channel, a number, or seven for each of
several spans.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkvseg.ops.backends import gluon_was_tried, refuse_transforms

# terms of a sum may lie e^50 apart, e^600 in float64: times T, |g| and |v|, their ratio must stay in range
LIMIT = {torch.float32: 50.0 * math.log2(math.e), torch.float64: 600.0 * math.log2(math.e)}
JOINED = 64  # spans up to which every program joins their states itself
SHARED_MEMORY = True  # whether tiles that are whole may stay in shared memory between the passes
SHARED_CAPABILITY = (9, 0)  # of the GPUs that this was measured on; later ones may have half the memory
SHARED_BYTES = 104 * 1024  # of a program's tile at most: two programs fit on a multiprocessor
LONG_IN_ONE = True  # whether spans of a sequence may exchange their states within a launch: tiled_long.py
LONG_MOST = 64  # spans of such a sequence: where all programs wait for one, several launches are faster
LONG_CHANNELS = (16,)  # of their tiles; 8 after 16: sequences of more spans in half as many. Never timed
LONG_EARLY = False  # whether they begin while their memory is still being cleared. Never run on a GPU
LONG_PAUSES = (1500, 6000)  # as PAUSE, forward and backward, of such launches
PAUSE = 1500  # nanoseconds between programs that begin together on a multiprocessor, forward in 16 bit
UNROLLED = 2  # how many blocks of the last passes are written out: fewer moves of registers, more code


class Tiling(NamedTuple):
    """What a program takes: chunks, each of `blocks` blocks of `block` tokens, of so many channels."""

    block: int
    blocks: int
    chunks: int
    channels: int
    warps: int
    registers: int | None = None  # at most so many per thread

    @property
    def span(self) -> int:
        """Tokens of a program."""
        return self.block * self.blocks * self.chunks

    def sizes(self, channels: int) -> dict[str, int]:
        """Return what every kernel over so many channels is compiled for."""
        sizes = {"C": channels, "BLOCK": self.block, "BLOCKS": self.blocks}
        return sizes | {"CHUNKS": self.chunks, "CHANNELS": self.channels}


def tiling(num_tokens: int, itemsize: int, *, backward: bool) -> Tiling:
    """Return the tiling of a pass over so many tokens whose elements have so many bytes.

    There are few, since each is compiled when it is first met. Both passes over a sequence of several spans
    must have the same ones: their states are kept per span. The choice was measured on an H200
    (benchmarks/tune_bi_wkv.py).
    """
    # maps of 8 x 8, 14 x 14, 16 x 16, 28 x 28, 32 x 32 fit exactly: the networks' own at 256, 224, 512
    sizes = ((8, 1, 4), (8, 2, 4), (8, 2, 8), (7, 7, 4), (8, 8, 4), (8, 4, 16), (7, 7, 16), (8, 8, 16))
    block, blocks, chunks = next((size for size in sizes if num_tokens <= math.prod(size)), sizes[-1])
    warps = chunks // 2
    if backward:
        return Tiling(block, blocks, chunks, 16, warps, 128 if itemsize < 8 else None)
    if itemsize == 2:  # two channels fill a load
        return Tiling(block, blocks, chunks, 32, warps, 128)
    return Tiling(block, blocks, chunks, 16, warps, 80 if itemsize < 8 else None)


def runs_shared_memory(device: torch.device, itemsize: int) -> bool:
    """Return whether kernels that work from shared memory run on a device, for elements of so many bytes."""
    if not SHARED_MEMORY or device.type != "cuda" or itemsize > 4:
        return False
    return torch.cuda.get_device_capability(device) == SHARED_CAPABILITY and gluon_was_tried()


def takes_shared_memory(*tensors: Tensor) -> bool:
    """Return whether kernels that work from shared memory may run on these, of one dtype and device."""
    found = runs_shared_memory(tensors[0].device, tensors[0].itemsize)
    return found and all(x.data_ptr() % 16 == 0 for x in tensors)  # copies go by 16 bytes


def held(tile: Tiling, itemsize: int, *, backward: bool) -> int:
    """Return the bytes of a program's tile in shared memory."""
    return (3 if backward else 2) * tile.span * tile.channels * itemsize


def shared_tile(num_tokens: int, itemsize: int, *, backward: bool) -> Tiling:
    """Return the tiling of a pass from shared memory over tokens whose elements have so many bytes."""
    tile = tiling(num_tokens, 2, backward=backward)
    warps = 8 if backward or itemsize == 4 else 4
    return tile._replace(channels=16, warps=warps, registers=128)


def shared_tiling(*tensors: Tensor, backward: bool) -> Tiling | None:
    """Return the tiling of a pass from shared memory over tensors (B, T, C), None if not for them."""
    _, num_tokens, channels = tensors[0].shape
    itemsize = tensors[0].itemsize
    tile = shared_tile(num_tokens, itemsize, backward=backward)
    whole = num_tokens == tile.span and channels % tile.channels == 0 and tile.chunks == 16
    fits = held(tile, itemsize, backward=backward) <= SHARED_BYTES
    return tile if whole and fits and takes_shared_memory(*tensors) else None


def options(name: str, tile: Tiling, itemsize: int) -> dict[str, Any]:
    """Return what a kernel from shared memory is compiled for: "fwd", "bwd", "longfwd" or "longbwd"."""
    if name.endswith("fwd"):
        return {"UNROLLED": min(UNROLLED, tile.blocks)}
    even = tile.blocks % UNROLLED == 0 and tile.blocks > UNROLLED
    if name == "longbwd":  # where there is no room for more: of 4 blocks two would spill registers
        return {"UNROLLED": UNROLLED if even and tile.blocks > 4 else 1}
    return {"UNROLLED": UNROLLED if even else 1, "KEPT": kept_fits(tile, itemsize)}


def kept_fits(tile: Tiling, itemsize: int) -> bool:
    """Return whether two programs fit on a multiprocessor if each keeps four numbers per lane and block."""
    lanes = tile.chunks * tile.channels
    tokens = held(tile, itemsize, backward=True)
    return tokens + 4 * (tile.blocks + 1) * lanes * 4 <= 112 * 1024  # and what lies there between the passes


class _Plan:
    """A tiling laid over k (B, T, C), and the launches it takes."""

    def __init__(self, k: Tensor, *, backward: bool) -> None:
        self.batch, self.num_tokens, self.channels = k.shape
        self.wide = torch.float64 if k.dtype == torch.float64 else torch.float32
        self.long = None  # the tiling where one launch does for all spans
        if LONG_IN_ONE:
            from rwkvseg.ops.wkv.tiled_long import long_tiling

            self.long = long_tiling(k, backward=backward)
        self.tile = self.long or tiling(self.num_tokens, k.itemsize, backward=backward)
        self.num_spans = -(-self.num_tokens // self.tile.span)
        self.device = k.device

    def new(self, *shape: int) -> Tensor:
        """Return unwritten memory for numbers that are summed."""
        return torch.empty(shape, dtype=self.wide, device=self.device)

    def new_states(self) -> Tensor:
        """Return memory for the states of all spans, or for what is saved where the span is the sequence."""
        return self.new(self.batch, self.num_spans, 7 if self.num_spans > 1 else 1, self.channels)

    def launch(self, name: str, *tensors: Tensor, **constants: Any) -> None:
        """Run a kernel, one program for each tile."""
        from rwkvseg.ops.wkv import triton_kernels, triton_long, triton_states

        kernel = getattr(triton_long if self.num_spans > 1 else triton_kernels, name)
        tiles = -(-self.channels // self.tile.channels)
        kernel[(self.batch * self.num_spans * tiles,)](
            *tensors,
            self.num_tokens,
            self.num_spans,
            **self.tile.sizes(self.channels),
            WHOLE=self.num_tokens % self.tile.span == 0 and self.channels % self.tile.channels == 0,
            LIMIT=LIMIT[self.wide],
            WIDE=triton_states.TYPES[self.wide],
            num_warps=self.tile.warps,
            maxnreg=self.tile.registers,
            **constants,
        )

    def launch_shared(self, tile: Tiling, name: str, tensors: tuple[Tensor, ...], *scratch: Tensor) -> None:
        """Run "fwd" or "bwd" from shared memory, then the safe form for the programs that this did not suit.

        scratch: what only the latter needs; at its end, backward, the sums of gw and gu, which that writes.
        """
        from rwkvseg.ops.wkv import triton_mend, triton_states

        tiles = self.channels // tile.channels
        num_tiles = self.batch * tiles
        # a flag for every tile; backward, for those of some channels, how many programs are done with them
        unfit = torch.empty(num_tiles + tiles, dtype=torch.int32, device=self.device)
        same: dict[str, Any] = tile.sizes(self.channels)
        same |= {"num_warps": tile.warps, "maxnreg": tile.registers}
        constants = same | {"LIMIT": LIMIT[self.wide], "WARPS": tile.warps}
        constants |= options(name, tile, tensors[2].itemsize)
        on_gpu = self.device.type == "cuda"
        each = 4 if num_tiles > 256 else 1  # as many programs as run at a time, or nearly, have little to do
        mending = same | {"WIDE": triton_states.TYPES[self.wide], "EACH": each, "EARLY": on_gpu}
        mending |= {"launch_pdl": True} if on_gpu else {}
        kernel = shared_kernel(name)[(num_tiles,)]
        if name == "fwd":
            turns = self.turns(num_tiles, tensors[2].itemsize)
            kernel(*tensors, unfit, self.num_tokens, *turns, **constants)
            mend = triton_mend.bi_wkv_fwd_mend_kernel[(-(-num_tiles // each),)]
            mend(*tensors, unfit, self.num_tokens, num_tiles, **mending)
        else:
            kernel(*tensors, unfit, self.num_tokens, num_tiles, **constants)
            mend = triton_mend.bi_wkv_bwd_mend_kernel[(-(-self.batch // each) * tiles,)]
            *rest, sums = scratch
            mend(*tensors, *rest, unfit, sums, self.num_tokens, self.batch, **mending)

    def turns(self, num_tiles: int, itemsize: int) -> tuple[int, int]:
        """Return (pause, processors) of the kernel; in float32, or if few tiles follow, nobody waits."""
        if self.device.type != "cuda":
            return 0, 1
        processors = num_processors(self.device)
        return (PAUSE if itemsize == 2 and num_tiles > 4 * processors else 0), processors

    @property
    def spans(self) -> int:
        """SPANS of the kernels: for how many a program joins states; 0 where `join` has done it."""
        if self.num_spans > JOINED:
            return 0
        return 8 if self.num_spans <= 8 else JOINED

    def keep(self, *, backward: bool) -> Tensor:
        """Return memory for what a first launch keeps for the last."""
        from rwkvseg.ops.wkv import triton_long

        rows = triton_long.rows_kept(self.tile.blocks, backward=backward)
        return self.new(self.batch, self.num_spans, rows, self.tile.chunks, self.channels)

    def join(self, w: Tensor, totals: Tensor, *, centred: bool) -> Tensor:
        """Return what enters every span if there are many; otherwise the totals as they are."""
        if self.num_spans <= JOINED:
            return totals
        from rwkvseg.ops.wkv import triton_long, triton_states

        states = torch.empty_like(totals)
        width = 16
        triton_long.bi_wkv_join_kernel[(self.batch * -(-self.channels // width),)](
            w,
            totals,
            states,
            self.num_spans,
            C=self.channels,
            SPAN=self.tile.span,
            GROUPS=-(-self.num_spans // 64),
            CHANNELS=width,
            CENTRED=centred,
            WIDE=triton_states.TYPES[self.wide],
            num_warps=4,
        )
        return states


def num_processors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; a CPU, where tests run one program after another, one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def shared_kernel(name: str) -> Any:
    """Return the kernel of a pass from shared memory: "fwd" or "bwd"."""
    if name == "fwd":
        from rwkvseg.ops.wkv.triton_shared import bi_wkv_fwd_shared_kernel

        return bi_wkv_fwd_shared_kernel
    from rwkvseg.ops.wkv.triton_shared_backward import bi_wkv_bwd_shared_kernel

    return bi_wkv_bwd_shared_kernel


@torch.library.custom_op("rwkvseg::bi_wkv_triton", mutates_args=())
def triton_bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Bi-WKV, see `rwkvseg.ops.bi_wkv`, which checks the arguments; and the states of the spans."""
    w, u, k, v = w.contiguous(), u.contiguous(), k.contiguous(), v.contiguous()
    plan = _Plan(k, backward=False)
    y, states = torch.empty_like(k), plan.new_states()
    shared = shared_tiling(k, v, y, backward=False)
    with torch.cuda.device_of(k):  # type: ignore[no-untyped-call]
        if plan.long is not None:
            from rwkvseg.ops.wkv import tiled_long

            if tiled_long.forward(plan.long, w, u, k, v, y, states):
                return y, states
            plan = _Plan(k, backward=False)  # another one, since the driver refused
            states = plan.new_states()
        if shared is not None:
            plan.launch_shared(shared, "fwd", (w, u, k, v, y, states))
        elif plan.num_spans == 1:
            plan.launch("bi_wkv_fwd_kernel", w, u, k, v, y, states)
        else:
            kept = plan.keep(backward=False)
            plan.launch("bi_wkv_totals_kernel", w, k, v, states, kept)
            states = plan.join(w, states, centred=True)
            plan.launch("bi_wkv_outputs_kernel", w, u, k, v, y, states, kept, SPANS=plan.spans)
    return y, states


@torch.library.custom_op("rwkvseg::bi_wkv_triton_backward", mutates_args=())
def triton_bi_wkv_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (w, u), in one tensor (2, C), of k and of v, from g (B, T, C), that of the output."""
    w, u, k, v, g = w.contiguous(), u.contiguous(), k.contiguous(), v.contiguous(), g.contiguous()
    plan = _Plan(k, backward=True)
    gk, gv = torch.empty_like(k), torch.empty_like(v)
    if plan.long is not None:
        from rwkvseg.ops.wkv import tiled_long

        with torch.cuda.device_of(k):  # type: ignore[no-untyped-call]
            return tiled_long.backward(plan.long, (w, u, k, v), g, states, gk, gv), gk, gv
    parts = plan.new(plan.batch * plan.num_spans, 2, plan.channels)
    # of each token its log-sum and output, which only programs in need of the safe form write and read
    keys, outs = plan.new(*k.shape), plan.new(*k.shape)
    shared = shared_tiling(k, v, g, gk, gv, backward=True)
    with torch.cuda.device_of(k):  # type: ignore[no-untyped-call]
        if shared is not None:
            sums = plan.new(2, plan.channels)
            tensors = (w, u, k, v, g, gk, gv, parts, states)
            plan.launch_shared(shared, "bwd", tensors, keys, outs, sums)
            return sums, gk, gv
        if plan.num_spans == 1:
            plan.launch("bi_wkv_bwd_kernel", w, u, k, v, g, gk, gv, parts, states, keys, outs)
        else:
            kept, adjoint = plan.keep(backward=True), plan.new_states()
            scratch = (keys, outs, kept)
            plan.launch("bi_wkv_adjoint_kernel", w, u, k, v, g, states, adjoint, *scratch, SPANS=plan.spans)
            adjoint = plan.join(w, adjoint, centred=False)
            inputs = (w, u, k, v, g, gk, gv, parts, states, adjoint)
            plan.launch("bi_wkv_gradients_kernel", *inputs, *scratch, SPANS=plan.spans)
    return parts.sum(0), gk, gv


@triton_bi_wkv.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    states = _Plan(k, backward=False).new_states()
    return torch.empty_like(k, memory_format=torch.contiguous_format), states


@triton_bi_wkv_backward.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    return states.new_empty(2, k.shape[2]), gk, gv


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    w, u, k, v, states = ctx.saved_tensors
    by_wu, gk, gv = triton_bi_wkv_backward(w, u, k, v, g, states)
    gw, gu = by_wu.to(w.dtype)
    return gw, gu, gk, gv


triton_bi_wkv.register_autograd(_gradients, setup_context=_save)
refuse_transforms(triton_bi_wkv, triton_bi_wkv_backward, name="bi_wkv", backend="triton", instead="naive")
