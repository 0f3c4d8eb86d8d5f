"""Prediction of rasters: time over the model alone, and memory that does not grow with the raster.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/raster.py time --side 2048
    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/raster.py loop --side 2048
    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/raster.py tiled --terratorch FILE
    PYTHONPATH=. python tests/benchmarks/raster.py memory --sides 2048 16384 --classes 3 30
    PYTHONPATH=. python tests/benchmarks/raster.py ray --scenes 16

``time`` runs a ViT-tiny with a convolution on its patch tokens over all windows of a raster held in
memory, without writing anything, and then the whole prediction of the same raster, in turns. It
prints CPU time and wall time: on a machine that is busy, CPU time is the one to read.

``loop`` predicts a raster with a cheap model (linear in the bands of a pixel) by the pipeline and by a loop over
TorchGeo's ``GriddedPatchSampler`` that averages patches in an array of the raster's size.

``tiled`` does the same against TerraTorch's ``tiled_inference``, whose file ``--terratorch`` names
(``terratorch/tasks/tiled_inference.py``; nothing else of that package is loaded), from file to map.
It is given the same windows: all that it reads are those that the pipeline reads.

``memory`` predicts rasters of each size with the cheap model in a process of its own, and prints the
peak of its resident memory above that of the process after the model has seen a batch. With
``--probabilities``, a band of these a class is written too.

``ray`` predicts scenes with the ViT-tiny by one worker of Ray and by two, each with a core, in
turns, and prints wall time with and without what it takes until a worker is ready.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import rasterio
import timm
import torch
from rasterio import Affine
from rasterio.windows import Window
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GriddedPatchSampler

from torchgeo_explora.inference import PredictSettings, RayCluster, Tally, predict_rasters
from torchgeo_explora.inference.ray_engine import load_ray
from torchgeo_explora.inference.windows import overlapping_windows
from torchgeo_explora.models import ModelSpec

SIZE, OVERLAP, BATCH = 224, 56, 16


class TinySegmenter(nn.Module):
    """ViT-tiny, a linear layer on its patch tokens, and bilinear interpolation."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        vit = timm.create_model('vit_tiny_patch16_224', num_classes=0)
        assert isinstance(vit, VisionTransformer)
        self.vit: VisionTransformer = vit
        self.head = nn.Linear(vit.embed_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.head(self.vit.forward_features(images)[:, 1:])
        grid = tokens.transpose(1, 2).unflatten(2, (SIZE // 16, SIZE // 16))
        return nn.functional.interpolate(grid, scale_factor=16, mode='bilinear')


class Pointwise(nn.Module):
    """A linear layer on the bands of every pixel: as little as a model can do.

    As a convolution of one pixel it would take ten times as long, to bring three bands into the
    layout of such kernels and back.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 3, generator=generator) * 8)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (self.weight @ images.flatten(2)).unflatten(2, images.shape[2:])
        return logits


def cheap(classes: int) -> nn.Module:
    """A model that takes next to no time."""
    return Pointwise(classes)


def describe(classes: int) -> ModelSpec:
    """A segmentation model for bytes."""
    names = tuple(f'class {index}' for index in range(classes))
    return ModelSpec(
        'segmentation', 'vit_tiny_patch16_224', names, ('r', 'g', 'b'), (0.0,) * 3, (1.0,) * 3,
        ((0.0, 255.0),) * 3, SIZE,
    )  # fmt: skip


def write_scene(path: Path, side: int) -> Path:
    """Write a tiled raster of smooth noise, row by row of tiles."""
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, 'w', driver='GTiff', height=side, width=side, count=3, dtype='uint8', tiled=True,
        blockxsize=512, blockysize=512, compress='deflate', crs='EPSG:32631', BIGTIFF='IF_SAFER',
        transform=Affine(1, 0, 5e5, 0, -1, 5e6),
    ) as target:  # fmt: skip
        for top in range(0, side, 512):
            rows = min(512, side - top)
            coarse = rng.integers(1, 255, (3, rows // 8 + 1, side // 8 + 1), dtype=np.uint8)
            values = coarse.repeat(8, 1).repeat(8, 2)[:, :rows, :side]
            target.write(values, window=Window(0, top, side, rows))
    return path


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and wall seconds."""
    cpu, wall = time.process_time(), time.monotonic()
    run()
    return time.process_time() - cpu, time.monotonic() - wall


def model_alone(model: nn.Module, path: Path, side: int) -> None:
    """Run a model over all windows of a raster, and keep nothing."""
    with rasterio.open(path) as source:
        image = torch.from_numpy(source.read())
    starts = [span.start for span in overlapping_windows(side, SIZE, OVERLAP).spans]
    corners = [(top, left) for top in starts for left in starts]
    with torch.inference_mode():
        for first in range(0, len(corners), BATCH):
            windows = [
                image[:, top : top + SIZE, left : left + SIZE]
                for top, left in corners[first : first + BATCH]
            ]
            model(torch.stack(windows).float() / 255)


def pipeline(model: nn.Module, path: Path, classes: int) -> None:
    """The whole way to a map."""
    with tempfile.TemporaryDirectory() as out:
        how = PredictSettings(overlap=OVERLAP, batch=BATCH)
        predict_rasters([path], model, describe(classes), out, how)


def torchgeo_loop(model: nn.Module, path: Path, classes: int, side: int) -> None:
    """What users write by hand: every patch, and sums in an array of the raster's size."""

    class Scenes(RasterDataset):
        filename_glob = '*.tif'

    data = Scenes(path.parent)
    sampler = GriddedPatchSampler(data, size=SIZE, stride=SIZE - OVERLAP)
    loader = DataLoader(data, BATCH, sampler=sampler, collate_fn=stack_samples)
    sums, counts = torch.zeros(classes, side, side), torch.zeros(side, side)
    with torch.inference_mode():
        for batch in loader:
            planes = model(batch['image'] / 255).softmax(1)
            for plane, bounds in zip(planes, batch['bounds'], strict=True):
                left, top = round(float(bounds[0]) - 5e5), round(5e6 - float(bounds[4]))
                rows = slice(max(top, 0), min(top + SIZE, side))
                columns = slice(max(left, 0), min(left + SIZE, side))
                part = plane[
                    :,
                    rows.start - top : rows.stop - top,
                    columns.start - left : columns.stop - left,
                ]
                sums[:, rows, columns] += part
                counts[rows, columns] += 1
    classes_map = (sums / counts.clamp_min(1)).argmax(0).to(torch.uint8).numpy()
    with tempfile.TemporaryDirectory() as out, rasterio.open(path) as source:
        profile = source.profile | {'count': 1}
        with rasterio.open(Path(out, 'map.tif'), 'w', **profile) as target:
            target.write(classes_map, 1)


def load_tiled_inference(path: Path) -> Callable[..., Tensor]:
    """Load TerraTorch's function from its file, without the package."""
    absent = types.ModuleType('terratorch.models.utils')
    vars(absent)['pad_images'] = None  # imported there, and not used by the function
    sys.modules['terratorch.models.utils'] = absent
    spec = importlib.util.spec_from_file_location('tiled_inference', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules['tiled_inference'] = module
    spec.loader.exec_module(module)
    function: Callable[..., Tensor] = module.tiled_inference
    return function


def terratorch(tiled: Callable[..., Tensor], model: nn.Module, path: Path) -> None:
    """Read a raster, predict it in the same windows by TerraTorch's function, write the map."""
    with rasterio.open(path) as source:
        image = torch.from_numpy(source.read()).float()[None] / 255
        profile = source.profile | {'count': 1}
    planes = tiled(
        lambda images: model(images).softmax(1), image, crop=SIZE, stride=SIZE - OVERLAP, delta=0,
        padding=False, batch_size=BATCH,
    )  # fmt: skip
    classes_map = planes[0].argmax(0).to(torch.uint8).numpy()
    with (
        tempfile.TemporaryDirectory() as out,
        rasterio.open(Path(out, 'map.tif'), 'w', **profile) as target,
    ):
        target.write(classes_map, 1)


def share_out(scenes: Path, workers: int) -> tuple[float, float]:
    """Wall seconds of all scenes by some workers, and from when the first was ready."""
    ready: list[float] = []

    def note(tally: Tally) -> None:
        if not ready:
            ready.append(time.monotonic())

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        predict_rasters(
            [scenes], TinySegmenter(3), describe(3), out,
            PredictSettings(overlap=OVERLAP, batch=BATCH, block=1024), progress=note,
            cluster=RayCluster(workers=workers),
        )  # fmt: skip
    end = time.monotonic()
    return end - began, end - ready[0]


def ray(count: int, side: int, repeats: int) -> None:
    """Compare one worker with two."""
    cluster = load_ray()
    cluster.init(
        address='local', num_cpus=2, include_dashboard=False, log_to_driver=False,
        logging_level='ERROR', object_store_memory=2**28,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            write_scene(Path(folder, f'{number}.tif'), side)
        for _ in range(repeats):
            one, two = share_out(Path(folder), 1), share_out(Path(folder), 2)
            print(
                f'{count} scenes of {side} x {side}: 1 worker {one[0]:.1f} s, 2 workers '
                f'{two[0]:.1f} s, {one[0] / two[0]:.2f} times as fast; from the first progress '
                f'{one[1]:.1f} s and {two[1]:.1f} s, {one[1] / two[1]:.2f}',
                flush=True,
            )
    cluster.shutdown()


def compare(first: Callable[[], object], second: Callable[[], object], repeats: int) -> None:
    """Run two ways in turns and print medians, and the ratios of pairs."""
    first(), second()  # warm
    pairs = [(measured(first), measured(second)) for _ in range(repeats)]
    for index, clock in enumerate(('CPU', 'wall')):
        a, b = ([pair[way][index] for pair in pairs] for way in (0, 1))
        ratios = sorted(y / x for x, y in zip(a, b, strict=True))
        print(
            f'{clock}: first {statistics.median(a):.2f} s, second {statistics.median(b):.2f} s, '
            f'second / first {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})'
        )


def _peak(
    side: int, classes: int, memory: int, probabilities: bool, folder: str, answer: Connection
) -> None:
    torch.set_num_threads(1)
    scene, model = Path(folder, f'{side}.tif'), cheap(classes)
    warm = write_scene(Path(folder, 'warm.tif'), 256)
    with tempfile.TemporaryDirectory() as out:  # what libraries load once is not counted
        predict_rasters([warm], model, describe(classes), out, PredictSettings(overlap=OVERLAP))
    with torch.inference_mode():  # nor what the model takes for a batch
        model(torch.zeros(BATCH, 3, SIZE, SIZE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir=folder) as out:
        how = PredictSettings(
            overlap=OVERLAP, batch=BATCH, max_memory=memory, probabilities=probabilities
        )
        spent = measured(lambda: predict_rasters([scene], model, describe(classes), out, how))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send(((after - before) / 1024, spent))


def memory(sides: list[int], classes: list[int], limit: int, probabilities: bool) -> None:
    """Print the peak of memory for every size and number of classes."""
    context = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            write_scene(Path(folder, f'{side}.tif'), side)
            for count in classes:
                here, there = context.Pipe()
                arguments = (side, count, limit, probabilities, folder, there)
                process = context.Process(target=_peak, args=arguments)
                process.start()
                peak, (cpu, wall) = here.recv()
                process.join()
                print(
                    f'{side} x {side}, {count} classes, --max-memory {limit}: {peak:.0f} MB above '
                    f'the model, {cpu:.1f} s CPU, {wall:.1f} s wall',
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=('time', 'loop', 'tiled', 'memory', 'ray'))
    parser.add_argument('--side', type=int, default=2048)
    parser.add_argument('--sides', type=int, nargs='+', default=[2048, 16384])
    parser.add_argument('--classes', type=int, nargs='+', default=[3, 30])
    parser.add_argument('--max-memory', type=int, default=256)
    parser.add_argument('--probabilities', action='store_true')
    parser.add_argument('--terratorch', type=Path, metavar='FILE')
    parser.add_argument('--scenes', type=int, default=16)
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    if args.what == 'memory':
        memory(args.sides, args.classes, args.max_memory, args.probabilities)
        return
    if args.what == 'ray':
        ray(args.scenes, args.side, args.repeats)
        return
    classes = args.classes[0]
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(Path(folder, 'scene.tif'), args.side)
        if args.what == 'time':
            model = TinySegmenter(classes).eval()
            print(f'model alone, then the pipeline; {args.side} x {args.side}, {classes} classes')
            compare(
                lambda: model_alone(model, scene, args.side),
                lambda: pipeline(model, scene, classes),
                args.repeats,
            )
        elif args.what == 'tiled':
            if args.terratorch is None:
                parser.error('name the file terratorch/tasks/tiled_inference.py as --terratorch')
            tiled, light = load_tiled_inference(args.terratorch), cheap(classes).eval()
            print(f'the pipeline, then TerraTorch; {args.side} x {args.side}, {classes} classes')
            compare(
                lambda: pipeline(light, scene, classes),
                lambda: terratorch(tiled, light, scene),
                args.repeats,
            )
        else:
            light = cheap(classes).eval()
            print(f'the pipeline, then the loop; {args.side} x {args.side}, {classes} classes')
            compare(
                lambda: pipeline(light, scene, classes),
                lambda: torchgeo_loop(light, scene, classes, args.side),
                args.repeats,
            )


if __name__ == '__main__':
    main()
