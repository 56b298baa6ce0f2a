"""The other side of `cargo xtask bench --against-pytorch`: the workloads of examples/pace.rs.

Usage: pace.py WORKLOAD THREADS FILE [channels_last | torchattacks | foolbox | pyautoattack]
"""

import importlib
import json
import logging
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


def lenet(p, x, train, padding=2):
    x = F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=2)
    x = F.max_pool2d(F.relu(x), 2)
    x = F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=padding)
    x = F.max_pool2d(F.relu(x), 2)
    return linear(p, "fc2", F.relu(linear(p, "fc1", x.flatten(1))))


def golden(p, x, train):
    return lenet(p, x, train, padding=0)


def atda(p, x, train):
    for name in ("conv1", "conv2"):
        x = F.relu(F.conv2d(x, p[name + ".weight"], p[name + ".bias"], stride=2, padding=1))
    return linear(p, "fc2", F.relu(linear(p, "fc1", x.flatten(1))))


def conv_norm(p, conv, norm, x, stride, train):
    weight = p[conv + ".weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
    norm += "."
    mean, var = p[norm + "running_mean"], p[norm + "running_var"]
    return F.batch_norm(x, mean, var, p[norm + "weight"], p[norm + "bias"], train, 0.1, 1e-5)


def resnet(p, x, train):
    x = F.relu(conv_norm(p, "conv1", "bn1", x, 1, train))
    for stage in range(1, 5):
        for block in range(100):
            at = f"layer{stage}.{block}"
            if at + ".conv1.weight" not in p:
                break
            stride = 2 if stage > 1 and block == 0 else 1
            h = F.relu(conv_norm(p, at + ".conv1", at + ".bn1", x, stride, train))
            h = conv_norm(p, at + ".conv2", at + ".bn2", h, 1, train)
            if stride == 2 and at + ".downsample.0.weight" in p:
                at += ".downsample"
                x = conv_norm(p, at + ".0", at + ".1", x, 2, train)
            elif stride == 2:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, h.shape[1] - x.shape[1]))
            x = F.relu(h + x)
    return linear(p, "fc", x.mean((2, 3)))


class Module(torch.nn.Module):
    """What the packages want."""

    def __init__(self, network, p):
        super().__init__()
        self.network, self.p = network, p
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.eval()

    def forward(self, x):
        return self.network(self.p, x, False)


def torchattacks_of(name, model, eps, small):
    import torchattacks

    steps = 20 if small else 100
    made = {
        "deepfool": lambda: torchattacks.DeepFool(model, 10 if small else 50, overshoot=0.02),
        "apgd-ce": lambda: torchattacks.APGD(model, "Linf", eps, steps, loss="ce"),
        "square": lambda: torchattacks.Square(model, "Linf", eps, 1000, resc_schedule=False),
        "fgsm": lambda: torchattacks.FGSM(model, eps),
        "pgd": lambda: torchattacks.PGD(model, eps, 0.01, 40),
        "mifgsm": lambda: torchattacks.MIFGSM(model, eps, eps / 10, 10),
    }
    return made[name]()


def foolbox_of(name, model, eps, small):
    import foolbox

    cw = {"binary_search_steps": 2, "steps": 20} if small else {"binary_search_steps": 5, "steps": 100}
    fixed = {"stepsize": 0.01, "initial_const": 1, "abort_early": False}
    made = {
        "deepfool": lambda: foolbox.attacks.L2DeepFoolAttack(steps=10 if small else 50),
        "cw": lambda: foolbox.attacks.L2CarliniWagnerAttack(**cw, **fixed),
        "ddn": lambda: foolbox.attacks.DDNAttack(steps=100),
        "fmn": lambda: foolbox.attacks.LInfFMNAttack(steps=100),
        "hopskipjump": lambda: foolbox.attacks.HopSkipJumpAttack(steps=10),
    }
    attack, wrapped = made[name](), foolbox.PyTorchModel(model, bounds=(0, 1))
    return lambda x, y: attack(wrapped, x, y, epsilons=None)[0]


def pyautoattack_of(name, model, eps, small):
    import pyautoattack
    from pyautoattack.autopgd_base import APGDAttack
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    ball = {"norm": "Linf", "eps": eps, "device": "cpu"}
    apgd = {**ball, "n_iter": 20 if small else 100, "logger": logging.getLogger("apgd")}
    made = {
        "autoattack": lambda: pyautoattack.AutoAttack(model, **ball, seed=0).run_standard_evaluation,
        "apgd-ce": lambda: APGDAttack(model, **apgd, loss="ce").perturb,
        "apgd-dlr": lambda: APGDAttack(model, **apgd, loss="dlr").perturb,
        # The whole cube, so that every image that it finds counts.
        "fab": lambda: FABAttack_PT(model, **{**ball, "eps": 1.0}).perturb,
        "square": lambda: SquareAttack(model, **ball, n_queries=1000, resc_schedule=False).perturb,
    }
    attack = made[name]()

    def run(x, y):
        with torch.no_grad():
            moved = attack(x, y)
        return moved[0] if isinstance(moved, tuple) else moved

    return run


PEERS = {
    "torchattacks": torchattacks_of,
    "foolbox": foolbox_of,
    "pyautoattack": pyautoattack_of,
}

# The norm of the distance, for attacks without a ball.
NORMS = {"deepfool": 2, "cw": 2, "ddn": 2, "hopskipjump": 2, "fab": torch.inf, "fmn": torch.inf}


def judged(name, model, images, labels, moved, eps):
    """The share of images that resist, and the median distance; a failure is farther than any."""
    with torch.no_grad():
        right = model(images).argmax(1) == labels
        resists = model(moved).argmax(1) == labels
    if name == "cw":
        # foolbox returns black images where it found nothing.
        resists |= moved.flatten(1).amax(1) == 0
    far = (moved - images).flatten(1).double()
    if name not in NORMS:
        resists |= far.abs().amax(1) > eps + 1e-6
    report = {"accuracy": (right & resists).sum().item() / len(images)}
    if name in NORMS:
        far = torch.linalg.vector_norm(far, NORMS[name], dim=1)
        far = torch.where(resists, 1e9, far)[right].sort().values
        report["distance"] = far[len(far) // 2].item()
    return report


def main():
    workload, threads, path, *options = sys.argv[1:]
    peer = next((option for option in options if option in PEERS), None)
    try:
        if peer:
            importlib.import_module(peer)
    except ImportError:
        print("not installed")
        return
    torch.set_num_threads(int(threads))
    tensors = read(path)
    images, labels = tensors.pop("images"), tensors.pop("labels").long()
    p = {name.removeprefix("params."): tensor for name, tensor in tensors.items()}
    if "channels_last" in options:
        images = images.to(memory_format=torch.channels_last)
        for name, tensor in p.items():
            if tensor.dim() == 4:
                p[name] = tensor.to(memory_format=torch.channels_last)
    network = lenet
    if workload.startswith("resnet"):
        network = resnet
    elif workload.startswith("golden"):
        network = golden
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
        if peer:
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

    def attacked():
        trained(False)
        name, small = workload.split("-", 1)[1], workload.startswith("resnet")
        eps, model = 8 / 255 if small else 0.1, Module(network, p)
        run = PEERS[peer](name, model, eps, small)
        torch.manual_seed(0)
        started = time.perf_counter()
        for _ in range(20 if name == "fgsm" else 1):
            moved = run(images, labels)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, **judged(name, model, images, labels, moved.detach(), eps)}

    def measured():
        if peer and workload != "lenet-pgd":
            return attacked()
        started = time.perf_counter()
        value = work()
        return {"seconds": time.perf_counter() - started, "loss": value}

    print("ready", flush=True)
    for _ in sys.stdin:
        report = measured()
        report["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(report), flush=True)


main()
