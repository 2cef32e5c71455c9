"""Bi-WKV of several spans in one cooperative launch a pass: for which inputs, with how many programs.

Whether it is taken is decided by shape, dtype and device alone, so that a backward pass takes what its
forward pass took: the latter saves a mean of the values only. Where the driver will not start all programs at
once, as where processes share a GPU, long sequences take the general form from then on.
"""

from typing import Any

import torch
from torch import Tensor

from rwkvseg.ops.wkv import tiled
from rwkvseg.ops.wkv.tiled import Tiling

REGISTERS = 64 * 1024  # of a multiprocessor of compute capability 9.0
MEMORY = 228 * 1024  # its shared memory, of which programs have a part
BLOCKS = (8, 7, 6, 5, 4)  # blocks of 8 tokens in each of 16 chunks: the first whose spans fill a sequence
ITEMSIZE = 2  # of its numbers: of larger ones few tiles have room on a multiprocessor
SCRATCH = 9 * 1024  # of a program at most, beside its tile: four numbers per lane and what sums need
GROUP = 16  # spans whose sums go on together where there are many
READ = 32  # spans up to which every program reads them all
refused: set[torch.device] = set()  # where the driver would not start all programs at once


def long_tile(blocks: int, channels: int = 16, *, backward: bool) -> Tiling:
    """Return the tiling of a pass over spans of so many blocks a lane, of so many channels in 16 bit."""
    warps, registers = (8, 128) if backward else (4, 168)  # two and three programs have room for no more
    return Tiling(8, blocks, chunks=256 // channels, channels=channels, warps=warps, registers=registers)


def at_a_time(tile: Tiling, *, backward: bool) -> int:
    """Return how many programs surely fit on a multiprocessor: as many as are launched, for each."""
    assert tile.registers is not None
    by_registers = REGISTERS // (tile.registers * 32 * tile.warps)
    return min(by_registers, MEMORY // (tiled.held(tile, ITEMSIZE, backward=backward) + SCRATCH))


def programs(tile: Tiling, num_spans: int, device: torch.device, *, backward: bool) -> int:
    """Return how many programs are launched.

    Whole sequences at a time where that leaves few places empty: then nobody waits for the next round.
    """
    number = at_a_time(tile, backward=backward) * tiled.num_processors(device)
    left = number % num_spans
    return number - left if left <= number // 10 else number


def long_tiling(k: Tensor, *, backward: bool) -> Tiling | None:
    """Return the tiling of a pass over k (B, T, C) in one launch, None if it is not for that."""
    if k.device in refused or k.itemsize != ITEMSIZE or not tiled.runs_shared_memory(k.device, ITEMSIZE):
        return None
    # both passes take the same spans, since states are kept per span
    most = tiled.LONG_MOST
    for channels in tiled.LONG_CHANNELS:  # of fewer, copies are of half a sector
        tiles = _filling(k, channels)
        if tiles and 2 <= k.shape[1] // tiles[0].span <= min(most, GROUP**2) and _fit(k, tiles):
            return tiles[backward]
        most = GROUP**2
    return None


def _filling(k: Tensor, channels: int) -> tuple[Tiling, Tiling] | None:
    """Return the tilings of both passes whose spans fill the sequences, if any do: for most 3D maps."""
    for blocks in BLOCKS if k.shape[2] % channels == 0 else ():
        tiles = long_tile(blocks, channels, backward=False), long_tile(blocks, channels, backward=True)
        if k.shape[1] % tiles[0].span == 0:
            return tiles
    return None


def _fit(k: Tensor, tiles: tuple[Tiling, Tiling]) -> bool:
    """Return whether all spans of a sequence fit on the GPU at once, and an image's offsets in 32 bits."""
    _, num_tokens, channels = k.shape
    num_spans = num_tokens // tiles[0].span
    forward, backward = (
        programs(tile, num_spans, k.device, backward=b) for tile, b in zip(tiles, (False, True), strict=True)
    )
    return num_tokens * channels < 2**31 and num_spans <= min(forward, backward)


def long_kernel(name: str) -> Any:
    """Return the kernel of a pass, "fwd" or "bwd", or the one before it, "zeros"."""
    if name != "bwd":
        from rwkvseg.ops.wkv import triton_shared_long

        return getattr(triton_shared_long, f"bi_wkv_{name}_long_kernel")
    from rwkvseg.ops.wkv.triton_shared_long_backward import bi_wkv_bwd_long_kernel

    return bi_wkv_bwd_long_kernel


def mend_kernel(name: str) -> Any:
    """Return the kernel that follows a pass."""
    from rwkvseg.ops.wkv import triton_mend_long

    return getattr(triton_mend_long, f"bi_wkv_{name}_mend_long_kernel")


def groups_read(num_spans: int) -> int:
    """Return GROUPS of the kernels: few different ones, since each is compiled."""
    if num_spans > READ:
        return 0
    return 1 << (-(-num_spans // GROUP) - 1).bit_length()


class _Launch:
    """The two launches of a pass over k (B, T, C)."""

    def __init__(self, tile: Tiling, k: Tensor, *, backward: bool) -> None:
        batch, self.num_tokens, self.channels = k.shape
        self.name = "bwd" if backward else "fwd"
        self.tile, self.device = tile, k.device
        self.num_spans = self.num_tokens // tile.span
        self.num_sequences = batch * (self.channels // tile.channels)
        num_groups = -(-self.num_spans // GROUP)
        self.states = (batch, self.num_spans, 7, self.channels)
        # what is sent, which begins with zeros, then the flags and a number that is counted up
        exchanges = 2 if backward else 1
        number = exchanges * self.num_sequences * (self.num_spans + num_groups) * tile.channels * 4
        zeros = self.zeros(number + self.num_sequences + 1)
        self.sent, self.flags = zeros[:number].view(torch.float32), zeros[number:]
        self.together = {"launch_cooperative_grid": True} if self.device.type == "cuda" else {}

    def zeros(self, number: int) -> Tensor:
        """Return so many zeros, which may still be on their way."""
        if not tiled.LONG_EARLY:
            return torch.zeros(number, dtype=torch.int32, device=self.device)
        zeros = torch.empty(number, dtype=torch.int32, device=self.device)
        long_kernel("zeros")[(-(-number // 1024),)](zeros, number, WARPS=4, num_warps=4)
        return zeros

    def new(self, *shape: int) -> Tensor:
        """Return unwritten memory for numbers that are summed."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def run(self, *tensors: Tensor) -> None:
        """Run the kernel of the pass."""
        backward = self.name == "bwd"
        num_tiles = self.num_sequences * self.num_spans
        number = programs(self.tile, self.num_spans, self.device, backward=backward)
        on_gpu = self.device.type == "cuda"
        pause = tiled.LONG_PAUSES[backward] if on_gpu else 0
        early = {"launch_pdl": True} if tiled.LONG_EARLY and on_gpu else {}
        long_kernel(self.name)[(min(number, num_tiles),)](
            *tensors,
            self.flags,
            self.sent,
            self.num_tokens,
            self.num_spans,
            num_tiles,
            pause,
            tiled.num_processors(self.device),
            **self.tile.sizes(self.channels),
            LIMIT=tiled.LIMIT[torch.float32],
            WARPS=self.tile.warps,
            GROUPS=groups_read(self.num_spans),
            EARLY=tiled.LONG_EARLY,
            **tiled.options(f"long{self.name}", self.tile, ITEMSIZE),
            num_warps=self.tile.warps,
            maxnreg=self.tile.registers,
            **self.together,
            **early,
        )

    def mend(self, *tensors: Tensor) -> None:
        """Run what does unfit sequences again, in programs that share them, one to a multiprocessor."""
        from rwkvseg.ops.wkv import triton_states

        early = self.device.type == "cuda"
        options = self.together | ({"launch_pdl": True} if early else {})
        mend_kernel(self.name)[(tiled.num_processors(self.device),)](
            *tensors,
            self.num_tokens,
            self.num_sequences,
            self.num_spans,
            **self.tile.sizes(self.channels),
            WIDE=triton_states.TYPES[torch.float32],
            EARLY=early,
            JOINS=-(-self.num_spans // 64),
            num_warps=self.tile.warps,
            maxnreg=128,
            **options,
        )


def _aligned(x: Tensor) -> Tensor:
    """Return x where copies may go by 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _is_refused(error: RuntimeError, device: torch.device) -> bool:
    """Return whether the driver would not start all programs at once; if so, it is not asked again."""
    if "cooperative" not in str(error):
        return False
    refused.add(device)
    return True


def forward(tile: Tiling, w: Tensor, u: Tensor, k: Tensor, v: Tensor, y: Tensor, states: Tensor) -> bool:
    """Write bi_wkv of k, v (B, T, C) to y, and a mean of the values to states (B, spans, 7, C).

    Return whether the driver started it; otherwise nothing is written.
    """
    k, v = _aligned(k), _aligned(v)
    launch = _Launch(tile, k, backward=False)
    try:
        launch.run(w, u, k, v, y, states)
    except RuntimeError as error:
        if _is_refused(error, k.device):
            return False
        raise
    launch.mend(w, u, k, v, y, states, launch.flags, launch.new(*launch.states))
    return True


def backward(
    tile: Tiling, inputs: tuple[Tensor, ...], g: Tensor, states: Tensor, gk: Tensor, gv: Tensor
) -> Tensor:
    """Write the gradients of k and v to gk and gv; return those of (w, u), (2, C). inputs: w, u, k, v."""
    w, u, *tokens = inputs
    k, v, g = (_aligned(x) for x in (*tokens, g))
    launch = _Launch(tile, k, backward=True)
    batch, num_spans, _, channels = launch.states
    parts, sums = launch.new(batch * num_spans, 2, channels), launch.new(2, channels)
    try:
        launch.run(w, u, k, v, g, gk, gv, parts, states)
    except RuntimeError as error:
        if not _is_refused(error, k.device):
            raise
        message = f"{k.device} is shared, so that the driver does not start all programs of bi_wkv at once"
        raise RuntimeError(f"{message}: repeat the step, which takes another form from now on") from error
    # states of spans, and of each token its log-sum and output: only unfit sequences write and read them
    scratch = [launch.new(*launch.states) for _ in range(3)] + [launch.new(*k.shape) for _ in range(2)]
    launch.mend(w, u, k, v, g, gk, gv, parts, launch.flags, *scratch, sums)
    return sums
