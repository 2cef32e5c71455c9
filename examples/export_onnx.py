"""Write a network as an ONNX file and run it without torch, at a size it was not exported at.

Run: python examples/export_onnx.py [FILE.onnx]     needs: pip install 'rwkvseg[export]'
"""

import sys
import tempfile

import onnxruntime
import torch
from torch.export import Dim

import rwkvseg

path = sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/network.onnx"
# few blocks, so that this is quick; a trained network comes from rwkvseg.inference.model_file.load_model
model = rwkvseg.create_model("rwkv_unet_tiny", num_classes=4, depths=(1, 1, 2, 1)).eval()

torch.onnx.export(
    model,
    (torch.rand(2, 3, 64, 80),),  # an example: the file takes other sizes
    path,
    dynamo=True,
    dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
    input_names=["image"],
    output_names=["logits"],
    external_data=False,  # one file
    verbose=False,
)

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
image = torch.rand(1, 3, 200, 333)
(logits,) = session.run(None, {"image": image.numpy()})
with torch.inference_mode():
    difference = (torch.from_numpy(logits) - model(image)).abs().max().item()
print(f"{path}: logits {logits.shape}, largest difference from torch {difference:.1e}")
assert difference < 1e-4
