"""Principal components against scikit-learn, and what makes them usable for many files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from torch import Tensor

from torchgeo_explora._files import write_tensors
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.objectives.pca import PCAAccumulator, PCABasis, basis_metadata, row_keys


def features(count: int = 500, dim: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) * torch.linspace(3, 0.1, dim)[:, None]
    return torch.randn(count, dim, generator=generator) @ mixing + 100


def fitted(rows: Tensor, k: int = 4, step: int = 500, sample: int = 4096) -> PCABasis:
    accumulator = PCAAccumulator(sample)
    for part in rows.split(step):
        accumulator.add(part)
    return accumulator.fit(k)


def test_the_basis_is_that_of_scikit_learn() -> None:
    rows = features()
    expected = PCA(4, svd_solver='full').fit(rows.double().numpy())
    basis = fitted(rows, step=64)
    torch.testing.assert_close(basis.mean, torch.from_numpy(expected.mean_))
    torch.testing.assert_close(basis.variances, torch.from_numpy(expected.explained_variance_))
    aligned = torch.from_numpy(expected.components_)
    aligned = aligned * (aligned * basis.components).sum(1, keepdim=True).sign()
    torch.testing.assert_close(basis.components, aligned)
    largest = basis.components.gather(1, basis.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    assert basis.count == 500


def test_order_and_size_of_batches_change_rounding_only() -> None:
    rows = features(3000)
    one = fitted(rows, sample=256)
    shuffled = rows[torch.randperm(3000, generator=torch.Generator().manual_seed(1))]
    other = fitted(shuffled, step=17, sample=256)
    for name in ('mean', 'components', 'variances', 'low', 'high'):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-9, atol=1e-9)


def test_a_far_mean_costs_no_digits() -> None:
    rows = features().double()
    near = fitted(rows.float())
    far = fitted((rows.float() - 100).double().float())
    torch.testing.assert_close(near.variances, far.variances, rtol=1e-4, atol=0)


def test_colours_span_the_middle_of_the_projections() -> None:
    rows = features(4000)
    basis = fitted(rows)
    projection = basis.project(rows.unflatten(0, (50, 80)))
    assert projection.shape == (50, 80, 4)
    colours = basis.to_rgb(projection)
    assert colours.shape == (50, 80, 3)
    for band in colours.unbind(-1):
        assert (band == 0).float().mean() == pytest.approx(0.02, abs=0.002)
        assert (band == 1).float().mean() == pytest.approx(0.02, abs=0.002)
    sampled = fitted(rows, sample=1000)
    spread = basis.high - basis.low
    assert ((sampled.low - basis.low).abs() < 0.1 * spread).all()


def test_keys_are_spread_evenly_and_tell_rows_apart() -> None:
    rows = torch.arange(20000.0)[:, None].expand(-1, 3)
    keys = row_keys(rows)
    assert len(keys.unique()) == len(rows)
    top = (keys >> 60).bincount(minlength=0) if bool((keys >= 0).all()) else (keys >> 60) + 8
    counts = top.bincount(minlength=16)
    assert counts.min() > 0.9 * 20000 / 16
    assert counts.max() < 1.1 * 20000 / 16


def test_features_that_do_not_vary_are_grey() -> None:
    basis = fitted(torch.full((10, 5), 2.5), 3)
    assert (basis.variances == 0).all()
    projection = basis.project(torch.full((2, 5), 2.5))
    assert (projection == 0).all()
    assert (basis.to_rgb(projection) == 0.5).all()
    assert fitted(torch.ones(1, 5), 3).count == 1


def test_a_saved_basis_is_the_same(tmp_path: Path) -> None:
    basis, path = fitted(features()), tmp_path / 'pca.safetensors'
    basis.save(path, {'model': 'x'})
    back = PCABasis.load(path)
    for name in ('mean', 'components', 'variances', 'low', 'high'):
        assert torch.equal(getattr(back, name), getattr(basis, name))
    assert back.count == basis.count
    assert basis_metadata(path)['model'] == 'x'


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('components', lambda x: x * 1.01),
        ('mean', lambda x: x * float('inf')),
        ('mean', Tensor.float),
        ('low', lambda x: x[:-1]),
        ('low', lambda x: x + 1e6),
        ('variances', None),
    ],
)
def test_a_file_that_is_no_basis_is_refused(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor] | None
) -> None:
    path = tmp_path / 'pca.safetensors'
    fitted(features()).save(path)
    texts, tensors = basis_metadata(path), load_file(path)
    value = tensors.pop(name)
    changed = {} if change is None else {name: change(value)}
    write_tensors(path, tensors | changed, texts)
    with pytest.raises(WeightsError, match='holds no basis'):
        PCABasis.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'other.safetensors'
    write_tensors(path, {'mean': torch.zeros(3)}, {'format': 'pt'})
    text = tmp_path / 'text.safetensors'
    text.write_text('no tensors')
    for file in (path, text, tmp_path / 'missing.safetensors'):
        with pytest.raises(WeightsError, match='holds no basis'):
            PCABasis.load(file)


def test_what_cannot_be_done_is_said() -> None:
    accumulator = PCAAccumulator()
    with pytest.raises(ConfigError, match='No feature'):
        accumulator.fit(1)
    accumulator.add(torch.rand(3, 4))
    with pytest.raises(ConfigError, match='5 dimensions'):
        accumulator.add(torch.rand(3, 5))
    with pytest.raises(ConfigError, match='not finite'):
        accumulator.add(torch.tensor([[1.0, 2, 3, float('nan')]]))
    with pytest.raises(ConfigError, match='choose 1 to 4'):
        accumulator.fit(5)
    basis = accumulator.fit(2)
    with pytest.raises(ConfigError, match='three components'):
        basis.to_rgb(basis.project(torch.rand(2, 4)))
    with pytest.raises(ConfigError, match='basis of the same model'):
        basis.project(torch.rand(2, 3))
