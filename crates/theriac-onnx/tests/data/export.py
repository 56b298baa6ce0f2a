"""Writes lenet.onnx and lenet.safetensors into a folder: what the exporter of PyTorch makes of a
small network, and the logits and a gradient of PyTorch in f64.

    pip install torch onnx onnxscript safetensors
    python crates/theriac-onnx/tests/data/export.py crates/theriac-onnx/tests/data
"""

import sys
from pathlib import Path

import onnx
import torch
from safetensors.torch import save_file
from torch import nn


class Network(nn.Module):
    """Convolutions of three kinds, and a classifier of two layers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.ReLU6(),
            nn.Conv2d(6, 16, 3, stride=2),
            nn.Hardswish(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(144, 32), nn.LeakyReLU(0.1), nn.Linear(32, 10))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def strip(path: Path) -> None:
    """Removes what the exporter notes of the machine that it ran on."""
    model = onnx.load(path)
    graph = model.graph
    for part in [graph, *graph.node, *graph.input, *graph.output, *graph.value_info]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    onnx.save(model, path)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    network = Network().eval()
    norm = network.features[1]
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    images = torch.rand(5, 1, 28, 28)
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        network,
        (images,),
        folder / "lenet.onnx",
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
    )
    strip(folder / "lenet.onnx")
    network, x = network.double(), images.double().requires_grad_()
    logits = network(x)
    # One weight for each image and class, so that no two can be mixed up.
    weights = torch.linspace(-1.0, 1.0, 50, dtype=torch.float64).reshape(5, 10)
    (logits * weights).sum().backward()
    tensors = {"images": images, "logits": logits.detach(), "weights": weights, "gradient": x.grad}
    save_file(tensors, folder / "lenet.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
