"""Weighted nearest neighbours as a TorchGeo task."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_info
from torchvision.models._api import WeightsEnum

from torchgeo_explora.objectives.probing import Features, knn
from torchgeo_explora.tasks._frozen import FrozenFeatureTask
from torchgeo_explora.tasks._results import write_result


class KNN(FrozenFeatureTask):
    """Classify by the nearest training images in the space of class tokens; nothing is trained.

    ``torchgeo validate`` scores the validation images, ``torchgeo test`` the test images, both by
    neighbours among the training images of the data module. Logs ``val/knn_20`` and so on, and
    writes ``knn_val.json`` and ``knn_val.csv`` beside the run.

    Batches hold ``image`` in [0, 1], as those of this package's data modules do. For a data module
    of TorchGeo, which normalises, give ``mean`` and ``std`` that leave its images alone (0 and 1).

    Args:
        model: Name of any timm vision transformer.
        weights: ``True`` for timm's own weights, a file, an enum or its name, a checkpoint of this
            package's tasks; ``None`` for random weights.
        in_channels: Number of bands.
        eval_size: Side of the images that the model sees, in pixels.
        resize: Length of the shorter side before the centre is cut out; ``eval_size`` by default.
            The paper resizes to 256 for 224.
        mean: Mean of each band in [0, 1]; that of the weights by default.
        std: Standard deviation of each band; that of the weights by default.
        k: Numbers of neighbours.
        temperature: Softmax temperature of their votes.
        eval_batch_size: Training images a batch.
        cache_dir: Folder that keeps the features of the training images between runs.
        output_dir: Folder of the result files; the run's own by default.

    Raises:
        ConfigError: If an argument is not possible.
        WeightsError: If the weights cannot be read or do not fit.
    """

    monitor = 'val/knn_best'

    def __init__(
        self,
        model: str = 'vit_small_patch14_dinov2',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        eval_size: int = 224,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        k: Sequence[int] = (10, 20, 100, 200),
        temperature: float = 0.07,
        eval_batch_size: int = 64,
        cache_dir: str | None = None,
        output_dir: str | None = None,
    ) -> None:
        self.weights = weights
        self.n_last_blocks = 1
        super().__init__()

    def report(self, stage: str, features: Features) -> None:
        """Score, log and write the result.

        Args:
            stage: ``val`` or ``test``.
            features: Of the evaluated images.
        """
        train = self.split_features('train')
        k, temperature = tuple(self.hparams['k']), self.hparams['temperature']
        result = knn(train, features, k, temperature, device=self.device)
        self.log_dict({f'{stage}/knn_{count}': acc for count, acc in result.accuracy.items()})
        self.log(f'{stage}/knn_best', result.best, prog_bar=True)
        rows = [
            {'k': count, 'used': result.used[count], 'accuracy': accuracy}
            for count, accuracy in result.accuracy.items()
        ]
        for row in rows:
            rank_zero_info(f'k = {row["k"]:3d}: {100 * row["accuracy"]:.2f} %')
        if result.note is not None:
            rank_zero_info(result.note)
        content = {
            **self.describe(stage, features),
            'train_images': len(train),
            'temperature': temperature,
            'note': result.note,
            'accuracy': rows,
        }
        if self.writes:
            write_result(self.result_folder() / f'knn_{stage}', content, rows)
