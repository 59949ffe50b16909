"""Peer of `zero_cost`: the scores of one network after the other, in plain PyTorch.

Each score is what its authors define (see `jaxnas.proxies`), written as a user would: hooks and
`torch.autograd`, one network at a time, every score with passes of its own. Networks are in
training mode. This module must not import jax.
"""

import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.torch_cells import CellNetwork, Network

Score = Callable[[nn.Module, Tensor, Tensor], float]

PRODUCTS = (nn.Conv2d, nn.Linear)
NTK_ROWS = 16


def kernels(network: nn.Module) -> list[Tensor]:
    """Weights of convolutions and dense layers."""
    return [module.weight for module in network.modules() if isinstance(module, PRODUCTS)]


def loss_gradients(network: nn.Module, x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Of the mean cross-entropy with respect to the kernels."""
    loss = functional.cross_entropy(network(x), y)
    return torch.autograd.grad(loss, kernels(network), materialize_grads=True, **options)


def grad_norm(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Sum of the gradients' norms."""
    return sum(g.norm().item() for g in loss_gradients(network, x, y))


def snip(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Sum of |w g|."""
    pairs = zip(kernels(network), loss_gradients(network, x, y), strict=True)
    return sum((w * g).abs().sum().item() for w, g in pairs)


def plain(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Sum of w g."""
    pairs = zip(kernels(network), loss_gradients(network, x, y), strict=True)
    return sum((w * g).sum().item() for w, g in pairs)


def grasp(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Minus the sum of w H g."""
    first = loss_gradients(network, x, y, create_graph=True)
    inner = sum((g.detach() * g).sum() for g in first)
    products = torch.autograd.grad(inner, kernels(network), materialize_grads=True)
    pairs = zip(kernels(network), products, strict=True)
    return -sum((w * p).sum().item() for w, p in pairs)


def fisher(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Half the mean square of (output times its gradient), for every weight of the channel."""
    outputs: list[Tensor] = []
    modules = [module for module in network.modules() if isinstance(module, PRODUCTS)]
    seen: list[nn.Module] = []

    def keep(module, inputs, output):
        seen.append(module)
        outputs.append(output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    loss = functional.cross_entropy(network(x), y)
    for hook in hooks:
        hook.remove()
    total = 0.0
    gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
    for module, a, g in zip(seen, outputs, gradients, strict=True):
        if g is not None:
            inner = (a * g).flatten(2).sum(2) if a.ndim > 2 else a * g
            total += 0.5 * module.weight[0].numel() * inner.square().mean(0).sum().item()
    return total


def synflow(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Logarithm of the sum of |w| dR/d|w|, in double precision and without normalisation."""
    dtype = x.dtype
    network.double()
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.forward = lambda x: x  # type: ignore[method-assign]
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.abs_()
    flow = network(torch.ones_like(x[:1], dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(flow, kernels(network), materialize_grads=True)
    total = sum((w * g).sum().item() for w, g in zip(kernels(network), gradients, strict=True))
    for norm in norms:
        del norm.forward
    network.load_state_dict(kept)
    network.to(dtype)
    return math.log(total) if total > 0.0 else math.nan


def l2_norm(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Sum of the kernels' norms."""
    return sum(w.norm().item() for w in kernels(network))


def _correlations(network: nn.Module, x: Tensor) -> np.ndarray:
    x = x.detach().requires_grad_()
    # Without a path from input to output there is no gradient: zeros, whose correlations are NaN.
    (gradients,) = torch.autograd.grad(network(x).sum(), x, materialize_grads=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(gradients.flatten(1).numpy().astype(np.float64))


def jacob_cov(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Minus the sum of log v + 1 / v over eigenvalues of the rows' correlations."""
    found = _correlations(network, x)
    if not np.isfinite(found).all():
        return math.nan
    values = np.linalg.eigvalsh(found) + 1e-5
    return float(-np.sum(np.log(values) + 1.0 / values))


def epe_nas(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Sum over classes of |the sum of log |correlation||."""
    found = _correlations(network, x)
    score = 0.0
    for label in np.unique(y.numpy()):
        rows = np.flatnonzero(y.numpy() == label)
        score += abs(np.log(np.abs(found[np.ix_(rows, rows)]) + 1e-5).sum())
    return float(score)


def naswot(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Log-determinant of the number of rectifiers that two rows have in common."""
    kernel = torch.zeros(len(x), len(x), dtype=torch.float64)

    def add(on: Tensor) -> None:
        on = (on.flatten(1) > 0.0).to(x.dtype)
        kernel.add_(on @ on.T + (1.0 - on) @ (1.0 - on).T)

    def keep(module, inputs, output):
        add(inputs[0])

    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    hooks = [module.register_forward_hook(keep) for module in relus]
    # The last rectifier is a function; what goes into it comes out of the last normalisation.
    hooks.append(network.head_norm.register_forward_hook(lambda m, i, output: add(output)))
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return float(np.linalg.slogdet(kernel.numpy())[1])


def zen(
    network: nn.Module, x: Tensor, y: Tensor, draws: tuple[Tensor, Tensor] | None = None
) -> float:
    """Log of the change of the feature map, plus logs of the normalisations' deviations.

    Args:
      network: gets Gaussian weights, and keeps them, unless there are `draws`.
      x: whose shape the inputs take.
      y: not used.
      draws: two inputs, for the weights that the network has.
    """
    if draws is None:
        for weight in kernels(network):
            nn.init.normal_(weight)
        first = torch.randn_like(x)
        draws = (first, first + 0.01 * torch.randn_like(x))
    maps: list[Tensor] = []
    hook = network.head_norm.register_forward_hook(lambda m, i, output: maps.append(output.relu()))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
    with torch.no_grad():
        network(draws[0])
        scale = sum(0.5 * math.log(norm.running_var.mean().item()) for norm in norms)
        network(draws[1])
    hook.remove()
    change = (maps[0] - maps[1]).abs().sum((1, 2, 3)).mean().item()
    return math.log(change) + scale if change > 0.0 else math.nan


def ntk(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Minus the condition number of the Gram matrix of the rows' gradients."""
    outputs = network(x[:NTK_ROWS])
    options = {"retain_graph": True, "materialize_grads": True}
    rows = [torch.autograd.grad(row.sum(), kernels(network), **options) for row in outputs]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    values = np.linalg.eigvalsh((flat @ flat.T).numpy().astype(np.float64))
    return float(-values[-1] / values[0]) if values[-1] > 0.0 else math.nan


def parameters(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Trainable numbers."""
    return float(sum(tensor.numel() for tensor in network.parameters()))


def flops(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Multiply-adds and additions of biases of convolutions and dense layers, per row."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += output[0, 0].numel() * sum(tensor.numel() for tensor in module.parameters())

    modules = [module for module in network.modules() if isinstance(module, PRODUCTS)]
    hooks = [module.register_forward_hook(count) for module in modules]
    with torch.no_grad():
        network(x[:1])
    for hook in hooks:
        hook.remove()
    return float(total)


SCORES: MappingProxyType[str, Score] = MappingProxyType(
    {
        "epe_nas": epe_nas,
        "fisher": fisher,
        "flops": flops,
        "grad_norm": grad_norm,
        "grasp": grasp,
        "jacob_cov": jacob_cov,
        "l2_norm": l2_norm,
        "naswot": naswot,
        "ntk": ntk,
        "parameters": parameters,
        "plain": plain,
        "snip": snip,
        "synflow": synflow,
        "zen": zen,
    }
)


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Entry point of a fresh process: `benchmarks.harness.in_fresh_process`.

    Args:
      request: `candidates` (operations of the edges), `network` (the fields of `Network`), `x`
        f32[N, H, W, C], `y` i64[N], `proxies` (names), `num_threads` and `seed`.

    Returns:
      `seconds` f64[F], for all candidates, each proxy by itself, networks included, and `values`
      f64[F, P].
    """
    torch.set_num_threads(request["num_threads"])
    torch.set_flush_denormal(True)
    shape = Network(**request["network"])
    x = torch.tensor(request["x"], dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor(request["y"], dtype=torch.int64)
    warm = CellNetwork(request["candidates"][0], shape)
    loss_gradients(warm, x, y)
    seconds, values = [], []
    for name in request["proxies"]:
        start = time.perf_counter()
        found = []
        for index, candidate in enumerate(request["candidates"]):
            torch.manual_seed(request["seed"] + index)
            found.append(SCORES[name](CellNetwork(candidate, shape).train(), x, y))
        seconds.append(time.perf_counter() - start)
        values.append(found)
    return {"seconds": np.asarray(seconds), "values": np.asarray(values)}
