"""Point tokenizer and point transformer against the same written in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from placerec_jax.methods import Pretrained
from placerec_jax.modules import torch_names_i2ploc
from placerec_jax.modules.point_tokenizer import PointTokenizer, TwoPartDense
from placerec_jax.modules.point_transformer import PointTransformer
from placerec_jax.ops.pointset import Groups, group_points
from placerec_jax.ops.unit_norm import unit_norm
from placerec_jax.training.pretrained import load_pretrained
from tests.modules import from_torch

WIDTHS, WIDTH, DEPTH, HEADS = (8, 12, 16, 20), 24, 2, 3
TOKENIZER = PointTokenizer(WIDTH, WIDTHS)
TRANSFORMER = PointTransformer(WIDTH, DEPTH, HEADS, position_width=128)
GROUPS, NEIGHBOURS = 6, 5


class Embedder(torch.nn.Module):
    """The tokenizer of the released code, by the names of its checkpoint: convolutions of size 1."""

    def __init__(self):
        super().__init__()
        conv = torch.nn.Conv1d
        self.emb_encoder = torch.nn.Module()
        sizes = (("first_conv", 3, *WIDTHS[:2]), ("second_conv", 2 * WIDTHS[1], *WIDTHS[2:]))
        for name, inner, a, b in sizes:
            layers = (conv(inner, a, 1), torch.nn.BatchNorm1d(a), torch.nn.ReLU(), conv(a, b, 1))
            setattr(self.emb_encoder, name, torch.nn.Sequential(*layers))
        self.reduce_dim = torch.nn.Linear(WIDTHS[3], WIDTH)

    def forward(self, offsets: torch.Tensor) -> torch.Tensor:
        batch, groups, k, _ = offsets.shape
        x = self.emb_encoder.first_conv(offsets.reshape(batch * groups, k, 3).transpose(1, 2))
        x = torch.cat([x.max(dim=2, keepdim=True).values.expand(-1, -1, k), x], dim=1)
        x = self.emb_encoder.second_conv(x).max(dim=2).values.reshape(batch, groups, -1)
        normalize = torch.nn.functional.normalize
        return normalize(self.reduce_dim(normalize(x, dim=-1)), dim=-1)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.attn, self.mlp = torch.nn.Module(), torch.nn.Module()
        self.attn.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attn.proj = torch.nn.Linear(WIDTH, WIDTH)
        self.mlp.fc1, self.mlp.fc2 = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, and the attention (B, heads, T, T)."""
        batch, count, _ = x.shape
        qkv = self.attn.qkv(self.norm1(x)).reshape(batch, count, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(dim=-1)
        x = x + self.attn.proj((attention @ value).transpose(1, 2).reshape(x.shape))
        return x + self.mlp.fc2(torch.nn.functional.gelu(self.mlp.fc1(self.norm2(x)))), attention


class Encoder(Embedder):
    """`pc_encoder` of the checkpoint: the tokenizer, and the transformer over its tokens."""

    def __init__(self):
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, WIDTH))
        self.cls_pos = torch.nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = torch.nn.Sequential(
            torch.nn.Linear(3, 128), torch.nn.GELU(), torch.nn.Linear(128, WIDTH)
        )
        self.blocks = torch.nn.Module()
        self.blocks.blocks = torch.nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc_norm = torch.nn.LayerNorm(WIDTH)

    def transform(self, tokens: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = len(tokens)
        position = torch.cat([self.cls_pos.expand(batch, -1, -1), self.pos_embed(centres)], dim=1)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1)
        for block in self.blocks.blocks:
            x, attention = block(x + position)
        return self.norm(x), attention


@pytest.fixture(scope="module")
def reference() -> Encoder:
    torch.manual_seed(0)
    network = Encoder()
    from_torch.randomize(network)
    return network


@pytest.fixture(scope="module")
def groups() -> Groups:
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-5, 5, (2, 40, 3)).astype(np.float32)
    return jax.tree.map(np.asarray, group_points(xyz, np.ones((2, 40), bool), GROUPS, NEIGHBOURS))


@pytest.fixture(scope="module")
def variables(reference, groups, tmp_path_factory) -> tuple[dict, dict, str]:
    """Variables of tokenizer and transformer, read from a checkpoint with the published names."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    state = {f"module.pc_encoder.{name}": value for name, value in reference.state_dict().items()}
    torch.save({"epoch": 7, "base_model": state | {"module.image_encoder.cls_token": torch.zeros(1)}}, path)
    tokens = jnp.zeros((2, GROUPS, WIDTH))
    fresh = {
        "point_tokenizer": jax.eval_shape(lambda: TOKENIZER.init(jax.random.key(0), groups, False)),
        "point_transformer": jax.eval_shape(
            lambda: TRANSFORMER.init(jax.random.key(0), tokens, groups.centres, groups.mask)
        ),
    }
    collections: dict = {"params": {}, "batch_stats": {}}
    for submodule, tree in fresh.items():
        for collection, leaves in tree.items():
            collections[collection][submodule] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), leaves)
    layouts = {
        "point_tokenizer": torch_names_i2ploc.point_tokenizer_layout(),
        "point_transformer": torch_names_i2ploc.point_transformer_layout(DEPTH),
    }
    wanted = {name: Pretrained("weights", str(path), (layout,)) for name, layout in layouts.items()}
    found = load_pretrained(collections, wanted)
    tokenizer, transformer = (
        {kind: tree[name] for kind, tree in found.variables.items() if name in tree} for name in wanted
    )
    return tokenizer, transformer, "\n".join(found.lines)


def test_the_published_checkpoint_has_a_name_for_every_array(variables):
    said = variables[2]
    assert "no match" not in said
    assert "below 'module.'" in said
    assert "not needed, a norm that the released code never calls: module.pc_encoder.fc_norm.weight" in said


@pytest.mark.parametrize(("train", "remat"), [(False, False), (True, False), (True, True)])
def test_tokenizer_is_that_of_torch(train, remat, reference, groups, variables):
    """Also says that the split product is the product with the concatenation, which torch's side has."""
    reference.train(train)
    given = torch.tensor(groups.offsets)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    expected = Embedder.forward(reference, given)
    module = TOKENIZER.clone(remat=remat)
    tokens, updated = module.apply(variables[0], groups, train, mutable=["batch_stats"])
    np.testing.assert_allclose(tokens, from_torch.array(expected), atol=2e-5)
    running = reference.emb_encoder.second_conv[1].running_var.numpy()
    found = updated["batch_stats"]["pointnet"]["second_bn"]["var"]
    np.testing.assert_allclose(found, running, rtol=1e-4)
    reference.load_state_dict(before)


def test_a_split_product_is_that_of_the_concatenation():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 1, 3)), rng.normal(size=(4, 6, 5))
    kernel, bias = rng.normal(size=(8, 7)), rng.normal(size=7)
    joined = np.concatenate([np.broadcast_to(first, (4, 6, 3)), second], axis=-1) @ kernel + bias
    split = TwoPartDense(7).apply({"params": {"kernel": kernel, "bias": bias}}, first, second)
    np.testing.assert_allclose(split, joined, rtol=1e-5, atol=1e-5)


def test_the_order_within_a_group_does_not_matter(groups, variables):
    shuffled = groups._replace(offsets=groups.offsets[:, :, ::-1])
    tokens = TOKENIZER.apply(variables[0], groups, False)
    np.testing.assert_allclose(TOKENIZER.apply(variables[0], shuffled, False), tokens, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=-1), 1, atol=1e-6)


def test_masked_groups_stay_out_of_the_statistics(groups, variables):
    def step(offsets, mask):
        return TOKENIZER.apply(
            variables[0], Groups(offsets, groups.centres, mask), True, mutable=["batch_stats"]
        )

    mask = np.arange(GROUPS) < np.array([[GROUPS], [2]])
    tokens, updated = step(groups.offsets, mask)
    noise = np.where(mask[..., None, None], groups.offsets, 100.0).astype(np.float32)
    others, again = step(noise, mask)
    np.testing.assert_allclose(others[mask], tokens[mask], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), again, updated)


@pytest.mark.parametrize("remat", [False, True])
def test_transformer_is_that_of_torch(remat, reference, groups, variables):
    tokens = np.random.default_rng(1).normal(size=(2, GROUPS, WIDTH)).astype(np.float32)
    expected, attention = reference.transform(torch.from_numpy(tokens), torch.tensor(groups.centres))
    module = TRANSFORMER.clone(remat=remat)

    def encode(m, tokens, centres, mask):
        encoded = m(tokens, centres, mask)
        return encoded.tokens, m.saliency(encoded, "forward_block"), m.saliency(encoded)

    found, forward, recomputed = module.apply(variables[1], tokens, *groups[1:], method=encode)
    np.testing.assert_allclose(found, from_torch.array(expected), atol=5e-5)
    # The last block's own attention of CLS, summed over heads.
    np.testing.assert_allclose(forward, from_torch.array(attention[:, :, 0].sum(dim=1)), atol=1e-5)
    # The last block's projection of the finished tokens, at unit length; neither its norm nor positions.
    unit = torch.nn.functional.normalize(expected, dim=-1)
    qkv = reference.blocks.blocks[-1].attn.qkv(unit).unflatten(-1, (3, HEADS, WIDTH // HEADS))
    query, key = torch.nn.functional.layer_norm(qkv[:, :, :2], (WIDTH // HEADS,)).unbind(2)
    logits = torch.einsum("bhd,bthd->bht", query[:, 0], key) * (WIDTH // HEADS) ** -0.5
    np.testing.assert_allclose(recomputed, from_torch.array(logits.softmax(-1).sum(1)), atol=1e-4)
    np.testing.assert_allclose(recomputed.sum(-1), HEADS, rtol=1e-6)
    assert np.abs(np.asarray(recomputed) - np.asarray(forward)).max() > 0.01


def test_masked_tokens_change_nothing_for_the_others(groups, variables):
    def encode(m, tokens, centres, mask):
        encoded = m(tokens, centres, mask)
        return encoded.tokens, encoded.mask, m.saliency(encoded, "forward_block"), m.saliency(encoded)

    tokens = np.random.default_rng(1).normal(size=(2, GROUPS, WIDTH)).astype(np.float32)
    real = np.ones((2, 4), bool)
    short = TRANSFORMER.apply(variables[1], tokens[:, :4], groups.centres[:, :4], real, method=encode)
    masked = np.arange(GROUPS)[None].repeat(2, 0) < 4
    full = TRANSFORMER.apply(variables[1], tokens, groups.centres, masked, method=encode)
    for one, other in zip(full, short, strict=True):
        np.testing.assert_allclose(one[:, :5], other, atol=1e-5)
    assert not full[1][:, 5:].any()
    np.testing.assert_array_equal(full[2][:, 5:], 0)
    np.testing.assert_array_equal(full[3][:, 5:], 0)


def test_a_shift_of_the_cloud_changes_the_tokens(groups, variables):
    tokens = np.random.default_rng(1).normal(size=(2, GROUPS, WIDTH)).astype(np.float32)
    here = TRANSFORMER.apply(variables[1], tokens, groups.centres, groups.mask).tokens
    there = TRANSFORMER.apply(variables[1], tokens, groups.centres + 5, groups.mask).tokens
    assert np.abs(here - there).max() > 0.01


@pytest.mark.parametrize("points", [40, 3, 0])
def test_gradients_are_finite_for_full_sparse_and_empty_clouds(points, variables):
    xyz = np.random.default_rng(0).uniform(-5, 5, (2, 40, 3)).astype(np.float32)
    groups = group_points(xyz, np.arange(40)[None].repeat(2, 0) < points, GROUPS, NEIGHBOURS)

    @jax.jit
    def gradient(tokenizer, transformer):
        def total(tokenizer, transformer):
            tokens, _ = TOKENIZER.apply(tokenizer, groups, True, mutable=["batch_stats"])
            found = TRANSFORMER.apply(transformer, tokens, groups.centres, groups.mask).tokens
            return jnp.sum(unit_norm(found)[:, 0, :3])

        return jax.value_and_grad(total, argnums=(0, 1))(tokenizer, transformer)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(*variables[:2])))


def test_spread_of_the_initial_embedding_of_positions():
    """Ten times the weights in both layers, a hundred times the embedding but for the bend of GELU."""
    centres = np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)
    args = np.zeros((1, 6, WIDTH), np.float32), centres, np.ones((1, 6), bool)
    kernels = {}
    for std in (0.02, 0.2):
        network = PointTransformer(WIDTH, DEPTH, HEADS, position_std=std)
        params = network.init(jax.random.key(0), *args)["params"]
        kernels[std] = params["position1"]["kernel"], params["position2"]["kernel"]
    for narrow, wide in zip(kernels[0.02], kernels[0.2], strict=True):
        np.testing.assert_allclose(wide, 10 * narrow, rtol=1e-5)
