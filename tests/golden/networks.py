"""Logits of ImageNet networks whose parameters are a formula, for `networks.safetensors`.

pip install torch torchvision timm efficientnet_lite_pytorch; python networks.py OUT.safetensors
"""

import sys

import numpy as np
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from safetensors.numpy import save_file


def hashed(name, count):
    """Numbers of 32 bits for positions 0 to count - 1 of the array called `name`."""
    start = 0x811C9DC5  # FNV-1a
    for byte in name.encode():
        start = (start ^ byte) * 0x01000193 % 2**32
    h = (np.arange(count, dtype=np.uint64) * 2654435761 + start) % 2**32
    h ^= h >> np.uint64(16)
    h = h * np.uint64(2246822519) % 2**32
    return h ^ (h >> np.uint64(13))


def parameter(name, shape):
    u = hashed(name, int(np.prod(shape))).reshape(shape) / 2.0**31 - 1.0
    if len(shape) in (2, 4):
        return u * np.sqrt(6.0 / np.prod(shape[1:]))
    if name.endswith("running_var"):
        return 1.0 + 0.4 * u
    if name.endswith("weight"):
        return 1.0 + 0.2 * u
    return 0.2 * u


# Squares of 16 x 16 pixels.
images = torch.from_numpy((hashed("image", 2 * 3 * 14 * 14) >> np.uint64(24)) / 255.0)
images = images.reshape(2, 3, 14, 14).repeat_interleave(16, 2).repeat_interleave(16, 3)
networks = {
    "resnet18": torchvision.models.resnet18(),
    "resnet34": torchvision.models.resnet34(),
    "resnet50": torchvision.models.resnet50(),
    "squeezenet": torchvision.models.squeezenet1_1(),
    "efficientnet-lite0": EfficientNet.from_name("efficientnet-lite0"),
    "deit-tiny": timm.create_model("deit_tiny_patch16_224"),
    "deit-small": timm.create_model("deit_small_patch16_224"),
    "deit-base": timm.create_model("deit_base_patch16_224"),
}
logits = {}
for name, network in networks.items():
    network = network.double().eval()
    state = network.state_dict()
    for path, value in state.items():
        if not path.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(parameter(path, tuple(value.shape))))
    with torch.no_grad():
        logits[name] = network(images).numpy().astype(np.float32)
    print(name, np.abs(logits[name]).max(), np.abs(logits[name][0] - logits[name][1]).max())
save_file(logits, sys.argv[1])
