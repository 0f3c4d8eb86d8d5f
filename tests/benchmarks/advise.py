"""Does the advice from short trials name what a whole sweep finds best?

    python tests/benchmarks/advise.py --json advise.json

On the synthetic domains of `torchgeo-explora replay`: a small vision transformer is trained on the
source domain; every candidate is then adapted to the target domain, for the few steps of a trial
and for a whole run, and scored by nearest neighbours on target scenes that nothing trained on. The
advice sees the trials alone. Regret is what the best candidate of the sweep scores above the
suggested one; the paper's choice, the last block with the largest rank, is judged alike. A CPU and
a quarter of an hour.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.analysis import AnalysisConfig, TokenProbeConfig, measure_model
from torchgeo_explora.analysis.advice import Trial, advise, draw_candidates, turning_block
from torchgeo_explora.analysis.pilot import Candidate, run_pilot
from torchgeo_explora.cli.replay import RECIPE
from torchgeo_explora.cli.replay_base import train_base
from torchgeo_explora.cli.replay_model import SIDE
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.objectives import get_preset
from torchgeo_explora.objectives.diagnostics import effective_rank
from torchgeo_explora.objectives.probing import Features, extract_features, knn_votes
from torchgeo_explora.transforms import EvalTransform
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD


class Sweep:
    """Adapts and scores candidates on one target domain.

    Args:
        args: Of the command line.
        seed: Of the domains and the base.
    """

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        train = SyntheticScenes(1600, 'source', seed=10 * seed + 1)
        test = SyntheticScenes(400, 'source', seed=10 * seed + 4)
        self.train = SyntheticScenes(args.images, 'target', seed=10 * seed + 2)
        self.test = SyntheticScenes(args.scored, 'target', seed=10 * seed + 3)
        self.base = train_base(train, test, 10, seed, torch.device('cpu')).model
        self.recipe = replace(get_preset('small').override(**RECIPE), batch_size=args.batch)

    def features(self, model: VisionTransformer, scenes: SyntheticScenes) -> Features:
        """Features of scenes."""
        batches = (part.float().div(255) for part in scenes.images.split(100))
        found = extract_features(model, batches, EvalTransform(SIDE), 1)
        return Features(found.cls, found.patch_mean, scenes.labels)

    def score(self, model: VisionTransformer) -> tuple[torch.Tensor, torch.Tensor]:
        """Which scenes neighbours classify correctly, and their features."""
        train, test = (self.features(model, scenes) for scenes in (self.train, self.test))
        votes = knn_votes(train.last, self.train.labels, test.last, (20,), 8)[20]
        return votes.argmax(dim=1) == self.test.labels, test.last

    def run(self, candidate: Candidate, steps: int, seed: int) -> Trial:
        """Adapt for some steps and score."""
        pilot = run_pilot(
            self.base, torch.zeros(1, self.base.embed_dim), self.recipe, candidate,
            self.train.images.float() / 255, IMAGENET_MEAN, IMAGENET_STD, steps, seed,
        )  # fmt: skip
        right, features = self.score(pilot.model)
        return Trial(candidate, seed, right, features, pilot.seconds, pilot.trainable)

    def candidates(self) -> list[Candidate]:
        """What advise would try."""
        dataset: Any = [{'image': x.float() / 255} for x in self.train.images[:300]]
        config = AnalysisConfig(tokens=4800, probe=TokenProbeConfig(steps=200))
        measures = measure_model(self.base, dataset, EvalTransform(SIDE), config)
        print('turning block', turning_block(measures), flush=True)
        return draw_candidates(measures, self.args.ranks)


def without_labels(trials: Sequence[Trial]) -> list[Trial]:
    """The same trials, as somebody without labels would see them."""
    return [Trial(t.candidate, t.seed, None, t.features, t.seconds, t.trainable) for t in trials]


def study(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Compare advice and sweep on one pair of domains."""
    sweep = Sweep(args, seed)
    right, features = sweep.score(sweep.base)
    candidates = sweep.candidates()
    outcome: dict[str, Any] = {'seed': seed, 'base': right.double().mean().item()}
    parts: dict[str, list[Trial]] = {}
    for name, steps in (('trial', args.steps), ('whole', args.whole)):
        parts[name] = []
        for candidate in candidates:
            found = [sweep.run(candidate, steps, s) for s in range(args.trials)]
            parts[name] += found
            scores = [round(100 * trial.score, 2) for trial in found]
            print(name, candidate.name, scores, f'{found[0].seconds:.3f} s', flush=True)
    whole = {
        c: sum(t.score for t in parts['whole'] if t.candidate == c) / args.trials
        for c in candidates
    }
    best = max(whole, key=lambda c: whole[c])
    bases = {'labels': outcome['base'], 'no labels': effective_rank(features)}
    trials = {'labels': parts['trial'], 'no labels': without_labels(parts['trial'])}
    for name, base in bases.items():
        advice = advise(trials[name], base, candidates[0])
        outcome[name] = {
            'suggested': advice.candidate.name,
            'sure': advice.sure,
            'regret': round(100 * (whole[best] - whole[advice.candidate]), 2),
        }
    outcome |= {
        'best': best.name,
        'reference': candidates[0].name,
        'regret of the reference': round(100 * (whole[best] - whole[candidates[0]]), 2),
        'whole': {c.name: round(100 * value, 2) for c, value in whole.items()},
        'trial': {c.name: [round(100 * t.score, 2) for t in parts['trial'] if t.candidate == c]
                  for c in candidates},
        'each whole': {c.name: [round(100 * t.score, 2) for t in parts['whole']
                                if t.candidate == c] for c in candidates},
    }  # fmt: skip
    return outcome


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--domains', type=int, nargs='+', default=[0], help='seeds of the domains')
    parser.add_argument('--steps', type=int, default=40, help='of a trial')
    parser.add_argument('--whole', type=int, default=300, help='of a whole run')
    parser.add_argument('--trials', type=int, default=2, help='seeds of each candidate')
    parser.add_argument('--ranks', type=int, nargs='+', default=[4, 16])
    parser.add_argument('--images', type=int, default=1200, help='target scenes to adapt to')
    parser.add_argument('--scored', type=int, default=800, help='target scenes that are scored')
    parser.add_argument('--batch', type=int, default=64, help='scenes of a step')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.process_time()
    results = []
    for seed in args.domains:
        results.append(study(args, seed))
        print(json.dumps(results[-1]), flush=True)
    print(
        f'{platform.machine()}, torch {torch.__version__}, {args.threads} threads, '
        f'{time.process_time() - start:.0f} s of processor time'
    )
    if args.json is not None:
        args.json.write_text(json.dumps({'arguments': str(args), 'results': results}, indent=1))


if __name__ == '__main__':
    main()
