"""The other side of `cargo xtask bench --against-pytorch`: the workloads of examples/pace.rs.

Usage: pace.py WORKLOAD THREADS FILE [channels_last | torchattacks]
"""

import json
import resource
import sys
import time

import numpy
import torch
import torch.nn.functional as F


def read(path):
    """The tensors of a safetensors file of f32."""
    data = open(path, "rb").read()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, end = (8 + size + at for at in entry["data_offsets"])
        values = numpy.frombuffer(data[first:end], "<f4").reshape(entry["shape"])
        tensors[name] = torch.from_numpy(values.copy())
    return tensors


def linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p[name + ".bias"])


def wide_lenet(p, x, train):
    for name in ("conv1", "conv2"):
        x = F.conv2d(x, p[name + ".weight"], p[name + ".bias"], padding=2)
        x = F.max_pool2d(F.relu(x), 2)
    return linear(p, "fc2", F.relu(linear(p, "fc1", x.flatten(1))))


def atda(p, x, train):
    for name in ("conv1", "conv2"):
        x = F.relu(F.conv2d(x, p[name + ".weight"], p[name + ".bias"], stride=2, padding=1))
    return linear(p, "fc2", F.relu(linear(p, "fc1", x.flatten(1))))


def conv_norm(p, at, number, x, stride, train):
    weight = p[f"{at}.conv{number}.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
    norm = f"{at}.norm{number}."
    mean, var = p[norm + "running_mean"], p[norm + "running_var"]
    return F.batch_norm(x, mean, var, p[norm + "weight"], p[norm + "bias"], train, 0.1, 1e-5)


def resnet(p, x, train):
    x = F.relu(conv_norm(p, "stem", "", x, 1, train))
    for stage in range(1, 5):
        for block in range(100):
            at = f"stage{stage}.{block}"
            if at + ".conv1.weight" not in p:
                break
            stride = 2 if stage > 1 and block == 0 else 1
            h = F.relu(conv_norm(p, at, "1", x, stride, train))
            h = conv_norm(p, at, "2", h, 1, train)
            if stride == 2 and at + ".shortcut.conv.weight" in p:
                x = conv_norm(p, at + ".shortcut", "", x, 2, train)
            elif stride == 2:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, h.shape[1] - x.shape[1]))
            x = F.relu(h + x)
    return linear(p, "fc", x.mean((2, 3)))


class Module(torch.nn.Module):
    """What torchattacks wants."""

    def __init__(self, network, p):
        super().__init__()
        self.network, self.p = network, p
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.network(self.p, x, False)


def main():
    workload, threads, path, *options = sys.argv[1:]
    torch.set_num_threads(int(threads))
    tensors = read(path)
    images, labels = tensors.pop("images"), tensors.pop("labels").long()
    p = {name.removeprefix("params."): tensor for name, tensor in tensors.items()}
    if "channels_last" in options:
        images = images.to(memory_format=torch.channels_last)
        for name, tensor in p.items():
            if tensor.dim() == 4:
                p[name] = tensor.to(memory_format=torch.channels_last)
    network = wide_lenet
    if workload.startswith("resnet"):
        network = resnet
    elif workload in ("atda-bim-epoch", "first-result"):
        network = atda
    moving = [t for name, t in p.items() if "running" not in name]
    optimiser = torch.optim.SGD(moving, lr=0.01, momentum=0.9)

    def trained(on):
        for tensor in moving:
            tensor.requires_grad_(on)

    def attack(first, size, eps, step, steps):
        trained(False)
        clean, target = images[first : first + size], labels[first : first + size]
        x = clean.clone()
        for _ in range(steps):
            x.requires_grad_(True)
            loss = F.cross_entropy(network(p, x, False), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() + step * gradient.sign()
            x = torch.clamp(torch.min(torch.max(x, clean - eps), clean + eps), 0, 1)
        return x

    def loss(x, first):
        trained(False)
        with torch.no_grad():
            target = labels[first : first + len(x)]
            return F.cross_entropy(network(p, x, False), target).item()

    def descend(parts, first):
        trained(True)
        optimiser.zero_grad(set_to_none=True)
        total = sum(
            F.cross_entropy(network(p, x, True), labels[first : first + len(x)]) for x in parts
        )
        total.backward()
        optimiser.step()
        return total.item()

    mnist, cifar, bim = (0.3, 0.01, 40), (8 / 255, 2 / 255, 7), (0.3, 0.03, 10)

    def work():
        if workload.startswith("lenet-train"):
            for _ in range(5):
                value = descend([images], 0)
            return value
        if "torchattacks" in options:
            import torchattacks

            eps, step, steps = mnist
            trained(False)
            pgd = torchattacks.PGD(Module(network, p), eps, step, steps, random_start=False)
            return loss(pgd(images, labels), 0)
        if workload in ("lenet-pgd", "first-result"):
            return loss(attack(0, len(images), *mnist), 0)
        if workload == "resnet20-attack":
            return loss(attack(0, len(images), *cifar), 0)
        if workload == "resnet20-adversarial":
            return descend([attack(0, len(images), *cifar)], 0)
        if workload == "atda-bim-epoch":
            for first in range(0, len(images) - 63, 64):
                moved = attack(first, 64, *bim)
                value = descend([images[first : first + 64], moved], first)
            return value
        return loss(images, 0)

    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        value = work()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "loss": value, "peak": peak}), flush=True)


main()
