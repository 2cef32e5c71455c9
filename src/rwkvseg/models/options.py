"""What the papers' studies vary about RWKV-UNet: one field a study, the published network by default.

docs/reference/studies.md says which table of the papers each field belongs to.
"""

from dataclasses import dataclass

from rwkvseg.errors import UsageError

CHOICES = {
    "arch": ("official", "paper"),
    "mixer": ("spatial_mix", "attention", "linear_attention", "bi_mamba", "none"),
    "decoder": ("expanded", "reduced", "plain"),
    "ccm_inputs": ("all", "retained"),
}
OWN_ENCODER = "rwkv"
_OF_OWN_ENCODER = {"mixer": "spatial_mix", "shallow_mixer": False, "channel_mix": False, "local_conv": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions:
    """Fields that every RWKV-UNet takes for the papers' studies."""

    arch: str = "official"
    """Where code and words of the papers differ: "official" as published weights need it, or "paper"."""

    encoder: str = OWN_ENCODER
    """"rwkv", or "timm/<name>" for an encoder of the optional timm in front of the same decoder."""

    mixer: str = "spatial_mix"
    """What mixes tokens in the GLSP blocks; "none" leaves LP blocks."""

    shallow_mixer: bool = False
    """Whether stages 1 and 2 have the mixer, too."""

    channel_mix: bool = False
    """Whether a ChannelMix of hidden rate 2 follows the mixer."""

    local_conv: bool = True
    """Whether the GLSP blocks have their 5x5 depthwise convolution."""

    decoder: str = "expanded"
    """Depthwise convolution before the channels are reduced, or after ("reduced"); or one "plain" one."""

    decoder_kernel: int = 9
    """Size of that convolution: 3, 5, 7, 9 or 11."""

    skips: int = 3
    """Skip connections kept, 0 to 3, the finest first."""

    ccm: bool = True
    """Whether the CCM mixes the skip connections; without skips there is none."""

    ccm_inputs: str = "all"
    """What the CCM sees: "all" three stages (papers, v2) or only the "retained" ones (v1)."""

    ccm_rate: int = 2
    """Hidden channels of the CCM over its channels."""

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give one of {', '.join(known)}.")
        for name in ("shallow_mixer", "channel_mix", "local_conv", "ccm"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give true or false.")
        self._check_number("decoder_kernel", (3, 5, 7, 9, 11))
        self._check_number("skips", (0, 1, 2, 3))
        self._check_number("ccm_rate", (1, 2, 3, 4))
        self._check_encoder()

    @property
    def has_rare_forms(self) -> bool:
        """Whether a block differs from its definition in rwkv_unet.py: then studies.py has it."""
        return (
            self.arch != "official" or self.channel_mix or not self.local_conv or self.decoder != "expanded"
        )

    def _check_number(self, name: str, known: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value not in known:
            raise UsageError(f"{name} is {value!r}. Give one of {', '.join(map(str, known))}.")

    def _check_encoder(self) -> None:
        """Refuse what would change nothing, so that no two names stand for one network."""
        changed = [name for name, default in _OF_OWN_ENCODER.items() if getattr(self, name) != default]
        if not isinstance(self.encoder, str) or self.encoder.removeprefix("timm/") in ("", "timm"):
            raise UsageError(f'encoder is {self.encoder!r}. Give "{OWN_ENCODER}" or "timm/<name>".')
        if self.encoder != OWN_ENCODER and not self.encoder.startswith("timm/"):
            raise UsageError(f'encoder is {self.encoder!r}. Give "{OWN_ENCODER}" or "timm/<name>".')
        if self.encoder != OWN_ENCODER and changed:
            raise UsageError(
                f"{', '.join(changed)} would change nothing: encoder is {self.encoder!r}. Drop one of them."
            )
        if self.mixer == "none" and len(changed) > 1:
            raise UsageError(
                f"{', '.join(changed[1:])} would change nothing: mixer is 'none'. Drop one of them."
            )
        if not (self.ccm and self.skips) and (self.ccm_inputs, self.ccm_rate) != ("all", 2):
            raise UsageError(
                f"ccm_inputs and ccm_rate would change nothing with ccm {self.ccm} and {self.skips} skips. "
                "Drop them."
            )
