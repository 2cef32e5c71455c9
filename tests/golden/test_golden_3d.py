"""What test_golden.py has for pictures, for volumes."""

import torch
from test_golden import close, compare, need_pinned


def test_logits_of_volumes(regenerate):
    """Statistics of the untrained network's logits on a fixed volume: initialisation and forward pass."""
    need_pinned("torch", "it draws other weights from the same seed")
    from rwkvseg.models.registry import create_model

    volume = torch.sin(torch.arange(20 * 32 * 24, dtype=torch.float32).view(1, 1, 20, 32, 24) * 0.37)
    lines = []
    torch.manual_seed(0)
    network = create_model("urwkv3d_tiny", in_channels=1, num_classes=3)
    with torch.inference_mode():
        for level, logits in enumerate(network(volume)):
            for channel in range(3):
                deviation, mean = torch.std_mean(logits[0, channel])
                name = f"tiny.{level}.{channel}"
                lines += [f"{name}.mean {mean:.6e}", f"{name}.deviation {deviation:.6e}"]
    compare("logits_3d.txt", "statistic value\n" + "\n".join(lines) + "\n", regenerate, equal=close)
