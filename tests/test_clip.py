"""CLIP's text encoders against transformers': every layer, pooling and its two rules, both generations of names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig as ReferenceConfig
from transformers import CLIPTextModel as Reference
from transformers import CLIPTextModelWithProjection

from autolora_jax.config import CLIPTextConfig
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.networks import param_shapes
from autolora_jax.weights import rules, tables
from tests.parity import error, params_of
from tests.reference import randomize

PARITY = 5e-6  # seen: 5e-7
VOCABULARY = 100
END = VOCABULARY - 1
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    projection_dim=24,
    bos_token_id=0,
    pad_token_id=1,
)


def build(cls=Reference, **changes) -> tuple[torch.nn.Module, CLIPTextModel]:
    module = randomize(cls(ReferenceConfig(**{**SIZES, "eos_token_id": 2, **changes})), 5)
    config = CLIPTextConfig.from_dict({**module.config.to_dict(), "architectures": [cls.__name__]})
    return module, CLIPTextModel(config=config)


def prompts(padding: int) -> np.ndarray:
    """Ids of texts that end at 1, 40 and 76."""
    ids = np.random.default_rng(0).integers(3, END, (3, 77)).astype(np.int32)
    for row, end in zip(ids, (1, 40, 76), strict=True):
        row[end], row[end + 1 :] = END, padding
    return ids


@torch.no_grad()
def reference(module: torch.nn.Module, ids: np.ndarray):
    return module(torch.from_numpy(ids).long(), output_hidden_states=True)


@pytest.mark.parametrize("padding", [END, 0])  # of SDXL's two tokenizers
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("cls", [Reference, CLIPTextModelWithProjection])
@pytest.mark.parametrize("eos_token_id", [2, END])
def test_matches_transformers(cls, activation, padding, eos_token_id):
    module, network = build(cls, hidden_act=activation, eos_token_id=eos_token_id)
    ids = prompts(padding)
    theirs = reference(module, ids)
    hidden, pooled = network.apply({"params": params_of(module, network)}, jnp.asarray(ids))
    assert len(hidden) == len(theirs.hidden_states) == 4
    for ours, layer in zip(hidden, theirs.hidden_states, strict=True):
        assert error(ours, layer) < PARITY
    assert error(pooled, theirs.text_embeds if cls is CLIPTextModelWithProjection else theirs.pooler_output) < PARITY


@pytest.mark.parametrize("eos_token_id, position", [(2, 1), (7, 3)])
def test_where_a_text_ends(eos_token_id, position):
    """Old configs' 2 means the first of the largest id; a true id means itself."""
    module, network = build(eos_token_id=eos_token_id)
    ids = np.full((1, 77), 5, np.int32)
    ids[0, [1, 9]], ids[0, [3, 8]] = END, 7
    hidden, pooled = network.apply({"params": params_of(module, network)}, jnp.asarray(ids))
    weight, bias = module.final_layer_norm.weight, module.final_layer_norm.bias
    state = torch.from_numpy(np.array(hidden[-1][0, position]))
    assert error(pooled[0], torch.nn.functional.layer_norm(state, state.shape, weight, bias)) < PARITY


def test_tokens_see_no_later_ones():
    module, network = build()
    params = {"params": params_of(module, network)}
    ids = prompts(END)
    changed = ids.copy()
    changed[:, 50:] = 9
    before, after = (network.apply(params, jnp.asarray(x))[0][-1] for x in (ids, changed))
    assert np.array_equal(before[:, :50], after[:, :50])
    assert np.abs(before[:, 50:] - after[:, 50:]).max() > 0.1


def test_both_generations_of_names():
    """transformers from 5.6 on leaves `text_model.` out of CLIPTextModel; published files have it."""
    module, network = build()
    bare = {k.removeprefix("text_model."): v.numpy() for k, v in module.state_dict().items()}
    published = {"text_model." + k: v for k, v in bare.items()}
    stages, shapes = tables.stages_for(network.config), param_shapes(network)
    old, new = (rules.convert(x, stages, shapes) for x in (published, bare))
    assert jax.tree.structure(old) == jax.tree.structure(shapes)
    assert jax.tree.all(jax.tree.map(np.array_equal, old, new))


def test_bfloat16_is_close():
    module, network = build(CLIPTextModelWithProjection)
    half = network.clone(dtype=jnp.bfloat16)
    ids = prompts(0)
    params = {"params": params_of(module, network)}
    (_, exact), (hidden, pooled) = (n.apply(params, jnp.asarray(ids)) for n in (network, half))
    assert {x.dtype for x in (*hidden, pooled)} == {jnp.dtype(jnp.bfloat16)}
    assert error(pooled.astype(jnp.float32), exact) < 0.03  # seen: 0.006
