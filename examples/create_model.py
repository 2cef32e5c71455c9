"""Create a network by name, look at a picture of any size with it, and count what it is made of.

Run: python examples/create_model.py
"""

import torch

import rwkvseg

print("networks:", ", ".join(rwkvseg.list_models()))

model = rwkvseg.create_model("rwkv_unet_tiny", in_channels=3, num_classes=4, drop_path_rate=0.1).eval()
parameters = sum(parameter.numel() for parameter in model.parameters())
print(f"rwkv_unet_tiny with 4 classes: {parameters:,} parameters")

image = torch.rand(1, 3, 200, 333)  # (B, C, H, W): neither square nor a multiple of 16
with torch.inference_mode():
    logits = model(image)  # (1, 4, 200, 333)
prediction = logits.argmax(dim=1)  # (1, 200, 333): the label of every pixel; untrained, so arbitrary
print(f"image {tuple(image.shape)} -> logits {tuple(logits.shape)} -> prediction {tuple(prediction.shape)}")
