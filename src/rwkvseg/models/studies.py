"""The rare block forms that the papers compare with their own; rwkv_unet.py is the network itself.

Parts that a form shares with the network's own have the same names, and so the same weights. What the papers
leave open is settled in docs/reference/studies.md. B: batch, C: channels, H, W: rows and columns.
"""

from functools import partial

from torch import Tensor, nn

from rwkvseg.models.blocks import EPS, ConvNormAct, DropPath, LayerNorm2d, add_normed
from rwkvseg.models.mixing import ChannelMix
from rwkvseg.models.options import StudyOptions
from rwkvseg.models.rwkv_unet import CrossChannelMix, DecoderBlock, Forms


def study_forms(options: StudyOptions) -> Forms:
    """Return the block, CCM and decoder block that `options` ask for."""
    decoder_blocks = {"expanded": DecoderBlock, "reduced": ReducedDecoderBlock, "plain": PlainDecoderBlock}
    return Forms(
        block=partial(StudyBlock, options=options),
        ccm=PaperCrossChannelMix if options.arch == "paper" else CrossChannelMix,
        decoder_block=decoder_blocks[options.decoder],
    )


class StudyBlock(nn.Module):
    """PerceptionBlock with what the studies add to it or take away.

    arch="paper": I1 = LayerNorm(Conv1x1(x)), I3 = I1 + SpatialMix(LayerNorm(I1)) (papers, equations 1 and 2).
    channel_mix: a ChannelMix after the token mixer, added as the mixer is (v2, table 10).
    local_conv=False: no depthwise convolution where there is a mixer (v1, table A1).
    x: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        inner: int,
        *,
        options: StudyOptions,
        norm: nn.Module,
        mixer: nn.Module | None = None,
        stride: int = 1,
        residual: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.norm_first = options.arch == "paper"
        self.norm = nn.Identity() if self.norm_first else norm
        self.expand: nn.Module
        if self.norm_first:
            self.expand = nn.Sequential(
                nn.Conv2d(in_channels, inner, 1, bias=False), LayerNorm2d(inner, eps=EPS)
            )
        else:
            self.expand = ConvNormAct(in_channels, inner, activation=nn.ReLU)
        self.mixer = mixer
        self.mixer_norm = LayerNorm2d(inner) if mixer is not None else None
        has_channel_mix = mixer is not None and options.channel_mix
        self.channel_mix = ChannelMix(inner) if has_channel_mix else None
        self.channel_mix_norm = LayerNorm2d(inner) if has_channel_mix else None
        self.local = (
            ConvNormAct(inner, inner, 5, stride=stride, groups=inner, activation=nn.SiLU)
            if mixer is None or options.local_conv
            else None
        )
        self.project = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, mix globally, mix locally, project."""
        inner: Tensor = self.expand(self.norm(x))
        inner = self._add(inner, self.mixer, self.mixer_norm)
        inner = self._add(inner, self.channel_mix, self.channel_mix_norm)
        if self.local is not None:
            inner = self.local(inner, residual=inner if self.residual else None)
        projected: Tensor = self.project(inner)
        if not self.residual:
            return projected
        dropped: Tensor = self.drop_path(projected)
        return x + dropped

    def _add(self, x: Tensor, branch: nn.Module | None, norm: LayerNorm2d | None) -> Tensor:
        if branch is None or norm is None:
            return x
        if self.norm_first:
            added: Tensor = self.drop_path(branch(norm(x)))
            return x + added
        return add_normed(x, branch(x), norm, self.drop_path)


class PaperCrossChannelMix(CrossChannelMix):
    """CCM in the papers' words: F + ChannelMix(LayerNorm(F)), where the code norms the branch's result."""

    def mix(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> same."""
        branch: Tensor = self.drop_path(self.channel_mix(self.norm(x)))
        return x + branch


class ReducedDecoderBlock(nn.Module):
    """DecoderBlock with the depthwise convolution after the reduction, on fewer channels (v1, table 7).

    x: (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 9) -> None:
        super().__init__()
        self.expand = ConvNormAct(in_channels, in_channels, activation=nn.ReLU)
        self.project = ConvNormAct(in_channels, out_channels, activation=nn.ReLU)
        self.local = ConvNormAct(out_channels, out_channels, kernel, groups=out_channels, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels, reduce, mix locally."""
        x = self.local(self.project(self.expand(x)))
        return x


class PlainDecoderBlock(nn.Module):
    """One ordinary convolution as decoder block (v1, table 7).

    x: (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 9) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels, kernel, activation=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """Mix and reduce at once."""
        x = self.conv(x)
        return x
