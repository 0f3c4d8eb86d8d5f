"""Hand a fitted model on: to QGIS and other programs (ONNX), and to the Hugging Face hub.

    python examples/export_model.py                  # a classifier that has learnt nothing
    python examples/export_model.py --model output/finetune_eurosat/model.safetensors

`torchgeo-explora export MODEL --to onnx` and `export MODEL --card` do the same. Nothing is uploaded.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from torchgeo_explora.cli import main
from torchgeo_explora.export import export_onnx, portable_model, random_chip
from torchgeo_explora.models import (
    ModelSpec,
    build_classifier,
    create_backbone,
    load_model,
    save_model,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--model', type=Path, help='model.safetensors of a fine-tuning')
parser.add_argument('--license', default='apache-2.0', help='licence that the card names')
parser.add_argument('--out', type=Path, default=Path('output/examples/export_model'))
args = parser.parse_args()

shutil.rmtree(args.out, ignore_errors=True)
args.out.mkdir(parents=True)
path = args.model
if path is None:
    backbone, _ = create_backbone('test_vit', seed=0, img_size=32)
    spec = ModelSpec(
        'classification', 'test_vit', ('field', 'forest', 'water'), ('red', 'green', 'blue'),
        (0.5,) * 3, (0.25,) * 3, scale=((0, 255),) * 3, image_size=32, resolution=10.0,
    )  # fmt: skip
    head = torch.Generator().manual_seed(0)
    path = save_model(
        build_classifier(backbone, 3, 'avg', head), spec, args.out / 'model.safetensors'
    )

model, spec = load_model(path)
portable = portable_model(model, spec)
chip = random_chip(portable, seed=0)
parity = export_onnx(portable, args.out / 'model.onnx', chip)
print(f'Largest difference from PyTorch on a random image: {parity.difference:.2g}')

# Any program with ONNX Runtime gives the same, and reads what the model is for.
session = onnxruntime.InferenceSession(args.out / 'model.onnx')
texts = session.get_modelmeta().custom_metadata_map
print('classes:', json.loads(texts['class_names']), 'tile:', texts['tiles_size'])
outputs = session.run(None, {session.get_inputs()[0].name: chip[None].numpy()})[0]
assert np.isfinite(outputs).all()

# A folder for the hub: the model and a card that says what it takes and where it comes from.
hub = args.out / 'hub'
status = main(['export', str(path), '--card', '--license', args.license, '--out', str(hub)])
if status != 0:
    raise SystemExit(status)
print((hub / 'README.md').read_text(encoding='utf-8').partition('## Load it')[0])
