from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from tests.losses import textbook
from tests.processes import FORKS
from torchgeo_explora.losses import SoftmaxCentering, sinkhorn_knopp, softmax_centering


def _logits(n: int, k: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(('n', 'k'), [(1, 5), (2, 64), (8, 24), (33, 7), (64, 512)])
@pytest.mark.parametrize('temperature', [0.07, 0.04, 1.0])
@pytest.mark.parametrize('iterations', [1, 3])
def test_sinkhorn_equals_the_textbook(n: int, k: int, temperature: float, iterations: int) -> None:
    logits = _logits(n, k)
    expected = textbook.sinkhorn_knopp(logits, temperature, iterations)
    exact = sinkhorn_knopp(logits.double(), temperature, iterations)
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=0)
    found = sinkhorn_knopp(logits, temperature, iterations)
    assert found.dtype == torch.float32
    # float32 holds an exponent of about 100 to 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=5e-5, atol=1e-30)


def test_sinkhorn_balances_the_prototypes() -> None:
    n, k = 48, 16
    q = sinkhorn_knopp(_logits(n, k), 0.5, iterations=200)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(n))
    torch.testing.assert_close(q.sum(dim=0), torch.full((k,), n / k))


def test_sinkhorn_ignores_a_constant_in_the_logits() -> None:
    logits = _logits(8, 24).double()
    expected = sinkhorn_knopp(logits, 0.07)
    torch.testing.assert_close(sinkhorn_knopp(logits + 50, 0.07), expected, rtol=1e-9, atol=0)


def test_sinkhorn_bears_logits_whose_exponentials_overflow_and_underflow() -> None:
    logits = _logits(8, 24, scale=10.0).double()  # exp(logits / 0.07) spans 1e-170 to 1e+170
    logits[3] -= 9
    logits[:, 5] += 9
    expected = textbook.sinkhorn_knopp(logits, 0.07)
    found = sinkhorn_knopp(logits.float(), 0.07)
    torch.testing.assert_close(found.double(), expected, rtol=5e-4, atol=1e-20)
    logits[3] -= 500
    logits[:, 5] -= 500
    assert textbook.sinkhorn_knopp(logits, 0.07).isnan().any()
    found = sinkhorn_knopp(logits.float(), 0.07)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(8))
    assert 0 < found[:, 5].sum() < 2


def test_sinkhorn_leaves_its_input_and_gradients_alone() -> None:
    logits = _logits(4, 8).requires_grad_()
    before = logits.detach().clone()
    assert not sinkhorn_knopp(logits, 0.07).requires_grad
    assert torch.equal(logits, before)


def test_sinkhorn_without_samples() -> None:
    assert sinkhorn_knopp(torch.empty(0, 8), 0.07).shape == (0, 8)


def test_sinkhorn_is_float32_under_autocast() -> None:
    logits = _logits(16, 32).bfloat16()
    expected = sinkhorn_knopp(logits.float(), 0.07)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(sinkhorn_knopp(logits, 0.07), expected)


def test_centering_is_a_softmax_about_the_centre() -> None:
    logits, center = _logits(6, 10), _logits(1, 10, seed=1)
    expected = ((logits - center) / 0.05).double().exp()
    expected = expected / expected.sum(dim=1, keepdim=True)
    found = softmax_centering(logits, center, 0.05)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-12)


def test_forward_keeps_the_centre_and_update_moves_it() -> None:
    centering = SoftmaxCentering(10, momentum=0.8)
    logits = _logits(6, 10) + 1
    first = centering(logits, 0.05)
    assert torch.equal(centering(logits, 0.05), first)
    assert torch.equal(centering.center, torch.zeros(1, 10))
    expected = torch.zeros(1, 10)
    for _ in range(3):
        expected = 0.8 * expected + 0.2 * logits.mean(dim=0, keepdim=True)
        centering.update(logits)
    torch.testing.assert_close(centering.center, expected)
    torch.testing.assert_close(centering(logits, 0.05), softmax_centering(logits, expected, 0.05))
    centering.update(torch.empty(0, 10))
    torch.testing.assert_close(centering.center, expected)


def _on_rank(rank: int, logits: list[list[Tensor]], folder: str) -> None:
    """Compute one rank's share of every case, and write it for the parent to compare."""
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
    found = []
    for case in logits:
        centering = SoftmaxCentering(case[rank].shape[1], momentum=0.5)
        centering.update(case[rank])
        found.append((sinkhorn_knopp(case[rank], 0.07), centering.center))
    torch.save(found, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    sizes = [(4, 4), (5, 2), (0, 6), (0, 0)]
    cases = [[_logits(n, 24, seed) for seed, n in enumerate(pair)] for pair in sizes]
    method = FORKS.get_start_method()
    start_processes(_on_rank, (cases, str(tmp_path)), nprocs=2, start_method=method)
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    for case, first, second in zip(cases, *ranks, strict=True):
        rows = torch.cat(case)
        assignments = torch.cat([first[0], second[0]])
        expected = sinkhorn_knopp(rows, 0.07)
        torch.testing.assert_close(assignments, expected, rtol=1e-5, atol=1e-30)
        center = rows.mean(dim=0, keepdim=True) / 2 if len(rows) > 0 else torch.zeros(1, 24)
        torch.testing.assert_close(first[1], center)
        torch.testing.assert_close(second[1], center)
