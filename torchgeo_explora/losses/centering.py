"""Turn the teacher's logits into targets that cannot collapse: Sinkhorn-Knopp and centring."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


def _all_reduce(tensor: Tensor, op: str = 'SUM') -> Tensor:
    """Reduce a tensor over all ranks in place, by the named operation; alone, do nothing."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op))
    return tensor


@torch.no_grad()
def sinkhorn_knopp(
    logits: Float[Tensor, 'samples prototypes'], temperature: float, iterations: int = 3
) -> Float[Tensor, 'samples prototypes']:
    """Assign samples to prototypes so that every prototype gets the same total.

    From ``Q = exp(logits / temperature)``, each iteration scales the prototypes to the same
    total and then the samples to the same total. Only the scales are iterated: the result is
    ``u_k Q_ik v_i`` with a factor u for each prototype and v for each sample, and the matrix
    itself is written once. What is common to all entries cancels, the number of samples
    included. So does what is common to a prototype or a sample: each prototype's largest
    logit over all ranks, and then each sample's, is taken out before the exponential, and the
    samples' put into the first v. Every row and every column then holds a 1, and no spread of
    the logits overflows a sum or makes it vanish.

    The sums run over the samples of all ranks where ``torch.distributed`` is initialised. All
    ranks must then call this function, with as many samples as each has, none included.

    Args:
        logits: The teacher's logits of this rank.
        temperature: The teacher's temperature, above 0.
        iterations: Number of iterations, at least 1.

    Returns:
        Rows that sum to 1, in float32 (float64 for float64 logits), without gradient.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments" (SwAV, 2020), section 3.1; DINOv2 (2023), section 4.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return sinkhorn_knopp_(logits.to(dtype, copy=True), temperature, iterations)


@torch.no_grad()
def sinkhorn_knopp_(
    logits: Float[Tensor, 'samples prototypes'], temperature: float, iterations: int = 3
) -> Float[Tensor, 'samples prototypes']:
    """Do what :func:`sinkhorn_knopp` does in place of the logits, float32 or float64 ones."""
    with torch.autocast(logits.device.type, enabled=False):  # matrix-vector products stay exact
        q = logits.div_(temperature)
        q.sub_(_all_reduce(_largest(q), 'MAX'))
        v = q.amax(dim=1)  # (samples,)
        q.sub_(v[:, None]).exp_()
        v.exp_()
        u = q.new_ones(q.shape[1])
        for _ in range(iterations):
            totals = _all_reduce(q.mT @ v)  # (prototypes,)
            u = totals.amin() / totals  # at most 1: u and v stay in range however often
            v = 1 / (q @ u)
        return q.mul_(u).mul_(v[:, None])


def _largest(q: Float[Tensor, 'samples prototypes']) -> Float[Tensor, ' prototypes']:
    """Return the largest value of each column, -inf without any row."""
    return q.amax(dim=0) if len(q) > 0 else q.new_full((q.shape[1],), -torch.inf)


def softmax_centering(
    logits: Float[Tensor, 'samples prototypes'],
    center: Float[Tensor, '1 prototypes'],
    temperature: float,
) -> Float[Tensor, 'samples prototypes']:
    """Return the softmax of logits relative to a running centre.

    Args:
        logits: The teacher's logits.
        center: Running mean of the teacher's logits.
        temperature: The teacher's temperature, above 0.

    Returns:
        Rows that sum to 1, in float32 (float64 for float64 logits).

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021),
    equations 1 and 4.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.softmax((logits.to(dtype) - center) / temperature, dim=-1)


class SoftmaxCentering(nn.Module):
    """Softmax relative to a running centre that is updated only by an explicit call.

    Args:
        num_prototypes: Number of logits.
        momentum: Share of the old centre in the new one, in [0, 1].

    Source: as :func:`softmax_centering`.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer('center', torch.zeros(1, num_prototypes))

    def forward(
        self, logits: Float[Tensor, 'samples prototypes'], temperature: float
    ) -> Float[Tensor, 'samples prototypes']:
        """Return the centred softmax; the centre stays as it is."""
        return softmax_centering(logits, self.center, temperature)

    @torch.no_grad()
    def update(self, logits: Float[Tensor, 'samples prototypes']) -> None:
        """Move the centre towards the mean of the logits of all ranks.

        Every rank must call this, also one without samples. Without any sample on any rank
        the centre stays.

        Args:
            logits: The teacher's logits of this rank.
        """
        total = logits.sum(dim=0, dtype=self.center.dtype)  # (prototypes,)
        total = _all_reduce(torch.cat([total, total.new_tensor([len(logits)])]))
        count = total[-1]  # stays on the device: reading it would stall the GPU
        share = (1 - self.momentum) * (count > 0).to(total.dtype)
        self.center.lerp_((total[:-1] / count.clamp(min=1))[None], share)
