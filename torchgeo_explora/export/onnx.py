"""ONNX files: read by onnxruntime everywhere, by the QGIS plugin Deepness with their metadata."""

import importlib
import json
import logging
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from torchgeo_explora import __version__
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.export.deepness import deepness_metadata
from torchgeo_explora.export.parity import Array, Parity, compare
from torchgeo_explora.export.portable import INPUT, PortableModel, PortableSpec, trace

OPSET = 18
"""Version of ONNX' operators that is written: the one that torch's exporter is made for."""

IR_VERSION = 8
"""Version of the file format that belongs to it, so that older runtimes read the file."""

LARGEST = 2**31 - 2**24
"""Bytes of weights that fit into one file beside the graph."""

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


def export_onnx(
    model: PortableModel,
    path: str | Path,
    chip: Tensor,
    *,
    resolution: float | None = None,
    program: ExportedProgram | None = None,
) -> Parity:
    """Write a model as ONNX, check it against PyTorch, and keep it if it is right.

    The file takes standardised images (batch, bands, side, side) of float32 under the name
    ``images``, in batches of any size, and gives ``probabilities`` or ``embedding``.

    Args:
        model: What :func:`portable_model` or :func:`portable_backbone` returned.
        path: The file to write, ending in ``.onnx``.
        chip: Standardised image (bands, side, side) to compare on.
        resolution: Size of a pixel in metres, for Deepness; what the model says by default.
        program: The traced model, where it was traced before.

    Returns:
        How close the written model is.

    Raises:
        ConfigError: If a package of the extra ``export`` is missing, the suffix is another one, or
            the model is too large for one file.
        OutputError: If the written model differs, or the file cannot be written; nothing is left.
    """
    path = Path(path).expanduser()
    if path.suffix != '.onnx':
        raise ConfigError(f'{path} does not end in .onnx: choose a name that does.')
    onnx, _, runtime = needed_packages()
    if 4 * model.spec.parameters > LARGEST:
        raise ConfigError(
            f'{model.spec.model} has {model.spec.parameters:,} weights, and an ONNX file holds at '
            'most 2 GB: export --to pt2 instead.'
        )
    proto = _to_proto(trace(model) if program is None else program, model.spec)
    _describe(proto, model.spec, resolution)
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    parity = compare(model, _session(runtime, content), chip, path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return parity


def needed_packages() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Import onnx, onnxscript and onnxruntime.

    Raises:
        ConfigError: If one is missing.
    """
    try:
        onnx, script, runtime = map(importlib.import_module, PACKAGES)
    except ImportError as error:
        raise ConfigError(
            f'ONNX files are written with {", ".join(PACKAGES)}, and {error.name or error} is '
            "missing: install them with pip install 'torchgeo-explora[export]'."
        ) from error
    return onnx, script, runtime


def _to_proto(program: ExportedProgram, spec: PortableSpec) -> Any:  # noqa: ANN401  # onnx' own
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            example = torch.zeros(2, *spec.input_shape)
            written = torch.onnx.export(
                program, (example,), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=[INPUT], output_names=[spec.output],
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert written is not None, 'the exporter of programs returns one'
    return written.model_proto


def _describe(proto: Any, spec: PortableSpec, resolution: float | None) -> None:  # noqa: ANN401
    """Name the free dimension, leave out what tells of this machine, and add what tells of the model."""
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = 'torchgeo_explora', __version__
    graph = proto.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField('metadata_props')
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == free:
                size.dim_param = 'batch'
    for node in (*graph.node, *graph.initializer, graph):
        node.ClearField('metadata_props')
        node.ClearField('doc_string')
    for name, text in sorted((deepness_metadata(spec, resolution) | own_metadata(spec)).items()):
        proto.metadata_props.add(key=name, value=text)


def own_metadata(spec: PortableSpec) -> dict[str, str]:
    """Return what the file says beside what Deepness reads, each value as JSON."""
    mean, std = spec.raw_statistics()
    values = {
        'task': spec.task,
        'backbone': spec.model,
        'bands': spec.images.bands,
        'raw_mean': mean,
        'raw_std': std,
        'scale': spec.images.scale,
        'weights_sha256': spec.weights_hash,
        'torchgeo_explora': __version__,
    }
    return {name: json.dumps(value) for name, value in values.items()}


def _session(runtime: ModuleType, content: bytes) -> Any:  # noqa: ANN401
    """Return a function that runs the model on a batch."""
    holder: list[Any] = []

    def run(batch: Array) -> Array:
        if not holder:
            holder.append(runtime.InferenceSession(content, providers=['CPUExecutionProvider']))
        found: Array = holder[0].run(None, {INPUT: batch})[0]
        return found

    return run
