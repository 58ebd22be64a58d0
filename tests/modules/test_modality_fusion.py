"""The cross transformer against its formulas in torch, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from placerec_jax.modules.modality_fusion import ModalityFusion, TokenNorm
from tests.modules import from_torch

DIM, HEADS, MLP = 12, 3, 20


class TorchNorm(torch.nn.Module):
    """(x − mean) / (unbiased std + 1e-6), scaled and shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.rand(DIM)), torch.nn.Parameter(torch.rand(DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-6) + self.bias


class TorchStage(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        torch.nn.init.uniform_(self.attention.in_proj_bias)
        self.norm = TorchNorm()
        self.linear1, self.linear2 = torch.nn.Linear(DIM, MLP), torch.nn.Linear(MLP, DIM)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = self.norm(x + self.attention(x, memory, memory)[0])
        return x + self.linear2(F.relu(self.linear1(x)))

    def converted(self) -> dict:
        projections = from_torch.array(self.attention.in_proj_weight).reshape(3, DIM, DIM)
        biases = from_torch.array(self.attention.in_proj_bias).reshape(3, HEADS, -1)
        attention = {
            name: {"kernel": projections[i].T.reshape(DIM, HEADS, -1), "bias": biases[i]}
            for i, name in enumerate(("query", "key", "value"))
        }
        attention["out"] = {
            "kernel": from_torch.array(self.attention.out_proj.weight).T.reshape(HEADS, -1, DIM),
            "bias": from_torch.array(self.attention.out_proj.bias),
        }
        return {
            "attention": attention,
            "norm": from_torch.norm(self.norm),
            "mlp": {name: from_torch.linear(getattr(self, name)) for name in ("linear1", "linear2")},
        }


def test_equals_torch():
    """Two stages a direction; the second asks the other modality as it came, not as a stage left it."""
    torch.manual_seed(0)
    norm, stages = TorchNorm(), {f"{d}_stage{s}": TorchStage() for d in ("first", "second") for s in (0, 1)}
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(2, length, DIM)).astype(np.float32) for length in (5, 7))
    with torch.no_grad():
        x, y = (norm(F.normalize(torch.from_numpy(tokens), dim=-1)) for tokens in (a, b))
        of_x = stages["first_stage1"](stages["first_stage0"](x, y), y)
        of_y = stages["second_stage1"](stages["second_stage0"](y, x), x)
        both = torch.cat([torch.cat([of_x, of_y], 1), torch.cat([x, y], 1)], 2)
        expected = F.normalize(both, dim=-1).numpy()
    params = {name: stage.converted() for name, stage in stages.items()}
    params["norm"] = from_torch.norm(norm)
    module = ModalityFusion(HEADS, MLP)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), a, b))
    from_torch.assert_same_structure({"params": params}, shapes)
    found, (own_x, own_y) = jax.jit(module.apply)({"params": params}, a, b)
    assert found.shape == (2, 12, 2 * DIM)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(own_x, x.numpy(), atol=1e-5)
    np.testing.assert_allclose(own_y, y.numpy(), atol=1e-5)


def test_tokens_that_say_nothing_are_finite():
    """ReLU may leave a token of zeros: its deviation is 0, where a root has no slope."""
    module = TokenNorm()
    variables = from_torch.drawn(module, jnp.zeros((1, 2, DIM)))
    gradient = jax.grad(lambda x: jnp.sum(module.apply(variables, x) * jnp.arange(DIM)))(
        jnp.zeros((1, 2, DIM))
    )
    assert np.isfinite(gradient).all()
