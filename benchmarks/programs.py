"""The library's programs at the sizes of published models, lowered for devices that are not here.

Arguments are shapes alone: nothing is computed and no weights are needed. tpu_compile.py and gpu_compile.py hand them
to a compiler and read what it made of them.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import DTypeLike

from autolora_jax import lora
from autolora_jax.config import CLIPTextConfig, MMDiTConfig, UNetConfig, VAEConfig
from autolora_jax.engine import decode
from autolora_jax.forms import Forms
from autolora_jax.guidance import SHARES, TOLD, plan
from autolora_jax.loading import vae_settings
from autolora_jax.models.int8 import Int8Kernel
from autolora_jax.models.joint import JointTransformerBlock
from autolora_jax.models.networks import network_of, param_shapes
from autolora_jax.models.resnet import ResnetBlock2D
from autolora_jax.models.transformer import BasicTransformerBlock
from autolora_jax.run import calls as calls_of
from autolora_jax.sampler import STRETCH, Images, Model, Numbers, State, Steps, advance
from autolora_jax.schedules import Schedule
from autolora_jax.settings.rules import Rule
from autolora_jax.sharding import WEIGHTS, map_images, replicated, split_axes, split_images, weight_placement
from autolora_jax.text.encoding import ROWS, Rows, Shared, encode
from autolora_jax.weights import published

ADAPTED = re.compile(r".*/(to_q|to_k|to_v|to_out_0|add_[qkv]_proj|to_add_out|net_0/proj|net_2|proj_in|proj_out)/kernel")
ROOM = 64  # ranks that every layer has place for, as lora.padded gives it
TEXT_TOKENS = 77 + 256  # of SD3: CLIP's and T5's
_CLIP = CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2)
_TINY = {
    "text_encoder": _CLIP,
    "text_encoder_2": dataclasses.replace(_CLIP, with_projection=True, projection_dim=64),
    "unet": dataclasses.replace(
        published.SDXL_BASE["unet"],
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 1),
        cross_attention_dim=2 * 64,
        projection_class_embeddings_input_dim=64 + 6 * 256,
    ),
    "vae": dataclasses.replace(published.SDXL_BASE["vae"], block_out_channels=(32, 32, 32, 32)),
}
NETWORKS = {
    "tiny": _TINY,
    "sdxl": published.SDXL_BASE,
    "sd3-medium": published.SD3_MEDIUM,
    "sd3.5-medium": published.SD35_MEDIUM,
    "sd3.5-large": published.SD35_LARGE,
}
DENOISERS = ("unet", "transformer")
MODELS = {model: next(parts[name] for name in DENOISERS if name in parts) for model, parts in NETWORKS.items()}


def network(size: int = 1024, model: str = "sdxl", attention: str = "splash") -> Any:
    """A published denoiser as accelerators run it. model: a key of MODELS; attention: of models.attention."""
    config = dataclasses.replace(MODELS[model], sample_size=size // 8)
    return network_of(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention=attention)


def delta_shapes(
    params: Any, rank: int, layers: re.Pattern[str] = ADAPTED, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """A delta of this rank on every attention and feed-forward layer, or those whose kernels' paths match.

    dtype: of `down` and `up`, the kernel's if None.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    delta = {}
    for path, leaf in flat.items():
        if layers.fullmatch(path):
            *into, out = leaf.shape
            base = path.removesuffix("/kernel")
            delta[f"{base}/down"] = jax.ShapeDtypeStruct((*into, rank), dtype or leaf.dtype)
            delta[f"{base}/up"] = jax.ShapeDtypeStruct((rank, out), dtype or leaf.dtype)
            delta[f"{base}/owner"] = jax.ShapeDtypeStruct((rank,), jnp.int32)
    return traverse_util.unflatten_dict(delta, sep="/")


def abstract(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def in_8_bits(kernel: jax.ShapeDtypeStruct) -> Int8Kernel:
    """A kernel's shape as `int8` keeps it, where it lies."""
    sharding: Any = kernel.sharding
    out = jax.sharding.NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[-1:]))
    return Int8Kernel(
        jax.ShapeDtypeStruct(kernel.shape, jnp.int8, sharding=sharding),
        jax.ShapeDtypeStruct(kernel.shape[-1:], jnp.float32, sharding=out),
    )


def conditioning(config: UNetConfig | MMDiTConfig, *lead: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes: dict[str, tuple[int, ...]]
    if isinstance(config, MMDiTConfig):
        tokens, pooled = (TEXT_TOKENS, config.joint_attention_dim), (config.pooled_projection_dim,)
        shapes = {"encoder_hidden_states": tokens, "pooled_projections": pooled}
    else:
        pooled = (config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,)
        shapes = {"encoder_hidden_states": (77, config.cross_attention_dim), "text_embeds": pooled, "time_ids": (6,)}
    return {name: jax.ShapeDtypeStruct((*lead, *shape), jnp.bfloat16) for name, shape in shapes.items()}


def lower_sampler(
    denoiser: Any,
    mesh: Mesh,
    batch: int,
    rule: Rule,
    rank: int = ROOM,
    loras: int = 4,
    kept: bool = False,
    int8: bool = False,
) -> Any:
    """The lowered sampler for `batch` images a chip.

    rank: of the delta's room in every layer. kept: without a delta, the tuned weights are there. int8: kernels are
    kept in 8 bits.
    """
    config = denoiser.config
    size, n = config.sample_size, batch * mesh.size
    calls = calls_of(plan(rule.filled(5.0), 1, 1), 0, 1)
    made, prompts = calls.columns.shape[1:]

    def numbers(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    params, latents = param_shapes(denoiser), (size, size, config.in_channels)
    steps = Steps(
        steps=numbers(dtype=jnp.int32),
        schedule=Schedule(*(numbers(STRETCH) for name in Schedule._fields if name != "known")),
        calls=numbers(STRETCH, dtype=jnp.int32),
        adapted=numbers(STRETCH, made, dtype=bool),
        columns=numbers(STRETCH, made, prompts, dtype=jnp.int32),
    )
    images = (
        Images(conditioning(config, n, len(TOLD)), numbers(n)),
        Numbers(
            coefficients=numbers(n, STRETCH, made, prompts, 1 + SHARES),
            held=numbers(n, STRETCH, SHARES),
            forms=Forms(*(numbers(n, STRETCH, SHARES) for _ in Forms._fields)),
            scales=numbers(n, STRETCH, made, loras),
            step_noise=numbers(n, STRETCH, *latents),
        ),
        State(*(numbers(n, *latents) for _ in range(3)), numbers(n, SHARES, *latents)),
    )
    model = Model(params, delta_shapes(params, rank, re.compile(".*/kernel")) if rank and not kept else {}, {})
    model, steps = abstract((model, steps), replicated(mesh))
    place = weight_placement(mesh)
    flat = traverse_util.flatten_dict(params, sep="/")
    split = {path: abstract(leaf, place(path, leaf.shape)) for path, leaf in flat.items()}
    if int8:
        split = {path: in_8_bits(leaf) if path.endswith("/kernel") else leaf for path, leaf in split.items()}
    model = model._replace(params=traverse_util.unflatten_dict(split, sep="/"))
    model = model._replace(tuned=model.params) if kept else model
    axes = split_axes(model.params) if mesh.shape[WEIGHTS] > 1 else ()
    return advance.lower(denoiser, mesh, model, steps, *abstract(images, split_images(mesh)), axes=axes)


def lower_forward(denoiser: Any, mesh: Mesh, batch: int) -> Any:
    """The lowered plain network, one forward of `batch` images on one chip."""
    config = denoiser.config
    latents = jax.ShapeDtypeStruct((batch, config.sample_size, config.sample_size, config.in_channels), jnp.float32)
    images = latents, jax.ShapeDtypeStruct((batch,), jnp.float32), conditioning(config, batch)

    def forward(params: Any, images: Any) -> Any:
        x, t, told = images
        return denoiser.apply({"params": params}, x, t, **told)

    return jax.jit(map_images(forward, mesh)).lower(*abstract((param_shapes(denoiser), images), replicated(mesh)))


def lower_encoder(config: Any, mesh: Mesh, length: int = 77, rank: int = ROOM, loras: int = 4) -> Any:
    """The lowered encoder of a text, for the texts of a batch; its loop takes one after another.

    length: tokens of a text. rank: of the delta's room in every layer, 0 without one, as T5 has none.
    """
    encoder = network_of(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    params, n = param_shapes(encoder), ROWS[0] * mesh.size
    delta = delta_shapes(params, rank, re.compile(".*/kernel")) if rank else {}
    shared = Shared(params, delta, None, jax.ShapeDtypeStruct((), jnp.int32))
    rows = Rows(
        jax.ShapeDtypeStruct((n, length), jnp.int32),
        jax.ShapeDtypeStruct((n,), jnp.int32),
        jax.ShapeDtypeStruct((n, loras), jnp.float32),
    )
    return encode.lower(encoder, mesh, abstract(shared, replicated(mesh)), abstract(rows, split_images(mesh)))


def lower_decoder(config: VAEConfig, mesh: Mesh, batch: int, size: int, dtype: jnp.dtype | None = None) -> Any:
    """The lowered VAE's decoder: pictures of `size` pixels, `batch` a chip, one after another.

    dtype: what it computes in, None as beside networks in bfloat16.
    """
    vae: Any = network_of(config, **vae_settings(config, jnp.dtype("bfloat16"), dtype))
    side = size // config.factor
    latents = jax.ShapeDtypeStruct((batch * mesh.size, side, side, config.latent_channels), jnp.float32)
    params = abstract(param_shapes(vae), replicated(mesh))
    return decode.lower(vae, mesh, params, abstract(latents, split_images(mesh)))


def attention_flop(config: UNetConfig | MMDiTConfig, size: int, evaluations: int) -> float:
    """FLOPs of the self-attention products, which Pallas kernels hide: 4·T²·channels a layer and evaluation."""
    total = 0.0
    if isinstance(config, MMDiTConfig):
        tokens = (size // config.patch_size) ** 2
        squares = config.num_layers * (tokens + TEXT_TOKENS) ** 2 + len(config.dual_attention_layers) * tokens**2
        return 4.0 * squares * config.features * evaluations
    for level, (channels, depth) in enumerate(zip(config.block_out_channels, config.depths, strict=True)):
        tokens = (size // 2**level) ** 2
        layers = 0
        if config.down_block_types[level].startswith("CrossAttn"):
            layers += config.layers_per_block
        if config.up_block_types[::-1][level].startswith("CrossAttn"):
            layers += config.layers_per_block + 1
        if level == len(config.depths) - 1:
            layers += 1  # the middle block
        total += layers * depth * 4 * tokens**2 * channels
    return total * evaluations


BLOCK_LAYERS = re.compile(r"(.*/)?(to_[qkv]|to_out_0|add_[qkv]_proj|to_add_out|net_0/proj|net_2|conv[12])/kernel")


def transformer(tokens: int, features: int, heads: int, **settings: Any) -> Any:
    block = BasicTransformerBlock(features=features, heads=heads, **settings)
    return block, [(tokens, features), (77, 2048)], 4 * tokens**2 * features


def resnet(side: int, features: int, **settings: Any) -> Any:
    block = ResnetBlock2D(features=features, num_groups=32, epsilon=1e-5, **settings)
    return block, [(side, side, features), (1280,)], 0


def joint(tokens: int, text: int, features: int, heads: int, **settings: Any) -> Any:
    block = JointTransformerBlock(
        features=features, heads=heads, qk_norm=False, dual_attention=False, text_only_read=False, **settings
    )
    return block, [(tokens, features), (text, features), (features,)], 4 * (tokens + text) ** 2 * features


# name -> (block, shapes of a row's inputs, FLOP of a row's attention kernel)
BLOCKS: dict[str, Callable[..., Any]] = {
    "b1280": partial(transformer, 1024, 1280, 20),
    "b640": partial(transformer, 4096, 640, 10),
    "r1280": partial(resnet, 32, 1280),
    "r640": partial(resnet, 64, 640),
    "r320": partial(resnet, 128, 320),
    "sd3": partial(joint, 4096, 333, 1536, 24),
    "tiny": partial(transformer, 256, 128, 2),
}


def lower_block(
    name: str, mesh: Mesh, rows: int, rank: int | None = None, attention: str = "splash"
) -> tuple[Any, float]:
    """(a block's lowered forward on one chip, FLOP of its attention kernel). rank: of the delta on its layers."""
    settings = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "attention": attention}
    block, shapes, flop = BLOCKS[name](**settings)
    inputs = [jax.ShapeDtypeStruct((rows, *shape), jnp.bfloat16) for shape in shapes]
    params = jax.eval_shape(block.clone(attention="xla").init, jax.random.key(0), *inputs)["params"]
    delta = delta_shapes(params, rank, BLOCK_LAYERS) if rank else {}

    def forward(params: Any, delta: Any, scale: jax.Array, *inputs: Any) -> Any:
        return block.apply({"params": params, "lora": lora.at_scale(delta, scale)}, *inputs)

    scale = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.jit(forward).lower(*abstract((params, delta, scale, *inputs), replicated(mesh))), flop * rows
