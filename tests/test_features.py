"""Features of pictures: prepared as transformers does, the same for any batch and device, kept; bad ones are named."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import BitImageProcessorPil, CLIPImageProcessorPil
from transformers import CLIPConfig as ReferenceClipConfig
from transformers import CLIPModel as ReferenceClip
from transformers import Dinov2Config as ReferenceConfig
from transformers import Dinov2Model as Reference

from autolora_jax.config import ConfigError, ImageProcessorConfig, image_processor
from autolora_jax.demo.classifier import SIZE, Classifier
from autolora_jax.evaluation.clipscore import clip_scores, clip_scores_of, pick_scores_of
from autolora_jax.evaluation.encoders import normalised, open_clip, open_encoder, prepared
from autolora_jax.evaluation.features import Encoder, FeatureCache, PictureEncoder, collect
from autolora_jax.evaluation.pictures import Pictures
from autolora_jax.sharding import data_mesh
from autolora_jax.weights import WeightsError
from tests.parity import error, normal
from tests.reference import randomize, save_tokenizer
from tests.test_clip_vision import VISION
from tests.test_dinov2 import SIZES
from tests.test_evaluation_pictures import encoded, picture, write_shard

PARITY = 2e-5  # of features, pixels included; seen: 1e-6
EXACT = 1e-12


def save_dinov2(folder: Path) -> Reference:
    """A tiny random DINOv2 with its preprocessing, as transformers saves it."""
    module = randomize(Reference(ReferenceConfig(**SIZES, use_swiglu_ffn=True)), 3)
    module.save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 64}, crop_size=56, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ).save_pretrained(folder)
    return module


def save_clip(folder: Path) -> ReferenceClip:
    """A tiny random CLIP whose tokenizer knows letters, as transformers saves it."""
    tokenizer = save_tokenizer(folder, "<|endoftext|>")
    text = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    text |= dict(num_attention_heads=4, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    module = ReferenceClip(ReferenceClipConfig(text_config=text, vision_config=VISION, projection_dim=20))
    for seed, part in enumerate(module.children()):
        randomize(part, seed)
    module.eval().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28).save_pretrained(folder)
    return module


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    folder = tmp_path_factory.mktemp("models") / "tiny-dinov2"
    return folder, save_dinov2(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReferenceClip]:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    return folder, save_clip(folder)


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return data_mesh(jax.devices()[:2])


def means() -> PictureEncoder:
    """Mean colours, by 8 devices, 16 pictures at a time."""

    def colours(params: jax.Array, x: jax.Array) -> jax.Array:
        return params * x.astype(jnp.float32).mean((1, 2))

    encode = Encoder(colours, lambda place: jax.device_put(np.ones((1, 3), np.float32), place), data_mesh(), 2)
    return PictureEncoder("means", "means-1", 3, np.asarray, encode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 pictures of one size, the last four as the first four, and their prompts."""
    out = tmp_path / "pictures"
    out.mkdir()
    for i in range(20):
        (out / f"{i:02}.png").write_bytes(encoded(picture(i % 16)))
    rows = [{"file": f"{i:02}.png", "prompt": f"the {'cat' if i % 2 else 'dog'}", "seed": i} for i in range(20)]
    (out / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return out


# ---- preparation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
@pytest.mark.parametrize("size", [(300, 200), (201, 777), (224, 224), (96, 96), (1023, 1025), (256, 257)])
def test_pictures_are_prepared_as_transformers_does(kind: str, size: tuple[int, int]):
    processor, config = {
        "dinov2": (
            BitImageProcessorPil(
                size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
            ),
            image_processor.DINOV2,
        ),
        "clip": (CLIPImageProcessorPil(), image_processor.CLIP),
    }[kind]
    image = picture(1, size)
    theirs = np.asarray(processor(image, return_tensors="np").pixel_values).transpose(0, 2, 3, 1)
    ours = normalised(jnp.asarray(prepared(image, config))[None], config)
    assert np.abs(ours - theirs).max() < 1e-5  # a grey level is 0.017; seen 7e-7


def test_the_published_processors_are_the_defaults(facts: Path, tmp_path: Path):
    config = ImageProcessorConfig.from_file(facts / "configs" / "dinov2-giant" / "preprocessor_config.json")
    assert config == image_processor.DINOV2
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    assert ImageProcessorConfig.from_file(tmp_path / "preprocessor_config.json") == image_processor.CLIP
    old = {"crop_size": 224, "size": 224, "resample": 3, "do_resize": True, "feature_extractor_type": "CLIP"}
    old |= {"image_mean": list(image_processor.CLIP.image_mean), "image_std": list(image_processor.CLIP.image_std)}
    assert ImageProcessorConfig.from_dict(old) == image_processor.CLIP


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"resample": 2}, "resample = 2 is not supported"),
        ({"size": {"height": 256, "width": 256}}, "size = .* should be int"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size = .* should be int"),
        ({"crop_size": 300}, "crop_size = 300 should be at most size = 256"),
        ({"do_center_crop": False}, "do_center_crop = False is not supported"),
    ],
)
def test_another_preparation_is_refused(changes: dict, said: str, facts: Path):
    raw = json.loads((facts / "configs" / "dinov2-giant" / "preprocessor_config.json").read_text())
    with pytest.raises(ConfigError, match=said):
        ImageProcessorConfig.from_dict({**raw, **changes})


# ---- models ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_dinov2_from_a_folder_is_transformers(dinov2: tuple[Path, Reference], mesh: jax.sharding.Mesh):
    path, module = dinov2
    encoder = open_encoder(path, mesh, batch_size=2)
    images = [picture(i, size) for i, size in enumerate([(80, 64), (64, 64), (200, 90), (57, 300), (56, 56)])]
    processor = BitImageProcessorPil.from_pretrained(path)
    theirs = module(**processor(images, return_tensors="pt")).pooler_output
    ours = encoder.encode(np.stack([encoder.prepare(image) for image in images]))
    assert ours.dtype == np.float32 and ours.shape == (5, encoder.size)
    assert error(ours, theirs) < PARITY


@torch.no_grad()
def test_clip_from_a_folder_is_transformers(clip: tuple[Path, ReferenceClip], mesh: jax.sharding.Mesh):
    path, module = clip
    ours = open_clip(path, mesh, batch_size=2)
    images, texts = [picture(i, (40, 50)) for i in range(3)], ["the cat", "a dog and the cat", ""]
    pixels = CLIPImageProcessorPil.from_pretrained(path)(images, return_tensors="pt").pixel_values
    theirs = module.get_image_features(pixels).pooler_output
    features = ours.pictures.encode(np.stack([ours.pictures.prepare(image) for image in images]))
    assert error(features, theirs) < PARITY
    from transformers import CLIPTokenizer

    ids = CLIPTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt").input_ids
    prompts = module.get_text_features(ids).pooler_output
    assert error(ours.texts(texts), prompts) < PARITY
    wanted = 100 * torch.nn.functional.cosine_similarity(theirs, prompts).clamp(min=0)
    np.testing.assert_allclose(clip_scores_of(ours, features, texts), wanted, atol=1e-3)
    logits = module.logit_scale.exp() * torch.nn.functional.cosine_similarity(theirs, prompts)  # PickScore's card
    np.testing.assert_allclose(pick_scores_of(ours, features, texts), logits, atol=1e-4)  # seen: 2e-6
    np.testing.assert_allclose(pick_scores_of(ours, -features, texts), -logits, atol=1e-4)  # nothing is cut off at 0
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 77 tokens CLIP reads"):
        ours.texts(["a", "a " * 80])
    assert open_encoder(path, mesh).identity == ours.pictures.identity


def test_the_builtin_features_are_the_classifiers(mesh: jax.sharding.Mesh):
    encoder = open_encoder("builtin", mesh, batch_size=2)
    images = [picture(i, (SIZE, SIZE)) for i in range(3)]
    pixels = np.stack([encoder.prepare(image) for image in images])
    np.testing.assert_allclose(encoder.encode(pixels), Classifier.load()(pixels).features, atol=1e-5)
    with pytest.raises(ValueError, match="is 40 × 50 pixels; the features 'builtin' are of pictures of 96 × 96"):
        encoder.prepare(picture(0, (40, 50)))


def test_features_do_not_depend_on_batch_and_devices():
    """One program a power of two."""
    encoder, pixels = means(), np.random.default_rng(0).integers(0, 256, (37, 4, 5, 3), np.uint8)
    whole = encoder.encode(pixels)
    np.testing.assert_allclose(whole, pixels.mean(axis=(1, 2)), rtol=1e-6)
    for n in (1, 8, 9, 16):
        assert np.array_equal(encoder.encode(pixels[:n]), whole[:n])
    with pytest.raises(ValueError, match="batch_size=0 should be 1 or more"):
        Encoder(lambda p, x: x, lambda place: None, data_mesh(), 0)


def test_few_programs_serve_any_number(count_compilations):
    encoder, pixels = means(), np.zeros((40, 4, 5, 3), np.uint8)
    with count_compilations() as compiled:
        for n in range(1, 41):
            encoder.encode(pixels[:n])
    assert len(compiled) <= 2 + 1  # batches of 1 and 2 a device, and the parameters


def test_features_that_are_not_finite_are_refused():
    encode = Encoder(
        lambda p, x: jnp.log(x.astype(jnp.float32) - 1).reshape(len(x), -1), lambda place: None, data_mesh(), 1
    )
    with pytest.raises(ValueError, match="not finite; compute them in float32"):
        encode(np.zeros((1, 2, 2, 3), np.uint8))


def test_identities_tell_models_apart(dinov2: tuple[Path, Reference], mesh: jax.sharding.Mesh, tmp_path: Path):
    """What features depend on is in their file's name; where the model lies is not."""
    path, _ = dinov2
    found = {"": open_encoder(path, mesh), "half": open_encoder(path, mesh, dtype="bfloat16")}
    for name in ("copy", "weights", "pixels"):
        folder = tmp_path / name / path.name
        folder.mkdir(parents=True)
        for file in path.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        if name == "weights":
            tensors = load_file(folder / "model.safetensors")
            save_file({key: x * 2 for key, x in tensors.items()}, folder / "model.safetensors")
        if name == "pixels":
            changed = json.loads((folder / "preprocessor_config.json").read_text()) | {"crop_size": 42}
            (folder / "preprocessor_config.json").write_text(json.dumps(changed))
        found[name] = open_encoder(folder, mesh)
    identities = {name: encoder.identity for name, encoder in found.items()}
    assert identities.pop("copy") == identities[""]
    assert len(set(identities.values())) == 4
    assert all(identity.startswith("tiny-dinov2-") for identity in identities.values())


def test_models_that_are_none(dinov2: tuple[Path, Reference], mesh: jax.sharding.Mesh, tmp_path: Path):
    with pytest.raises(WeightsError, match="is no CLIP, which reads texts"):
        open_clip(dinov2[0], mesh)
    with pytest.raises(WeightsError, match="facebook/dinov2-giant is not on this machine and HF_HUB_OFFLINE is set"):
        open_encoder("dinov2-giant", mesh, cache_dir=tmp_path)


# ---- collecting ------------------------------------------------------------------------------------------------------


def test_features_come_in_order_and_once(folder: Path, tmp_path: Path):
    encoder, batches = means(), []
    found = collect(Pictures(folder), [encoder], tmp_path / "c", lambda done, by: batches.append((done, by)))
    pixels = np.stack([np.asarray(each.image()) for each in Pictures(folder)])
    np.testing.assert_allclose(found.features["means"], pixels.mean(axis=(1, 2)), rtol=1e-6)
    assert [known.key for known in found.pictures] == [f"{i:02}.png" for i in range(20)]
    assert [done for done, by in batches if not by] == list(range(1, 21))
    assert sum(bool(by) for _, by in batches) == 1  # of 16
    batches.clear()
    again = collect(Pictures(folder), [encoder], tmp_path / "c", lambda done, by: batches.append((done, by)))
    assert np.array_equal(again.features["means"], found.features["means"])
    assert not any(by for _, by in batches)


def test_a_folder_and_its_shards_give_the_same(folder: Path, tmp_path: Path):
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    files: dict[str, bytes] = {}
    for row in rows:
        stem = row["file"].removesuffix(".png")
        files |= {row["file"]: (folder / row["file"]).read_bytes(), f"{stem}.json": json.dumps(row).encode()}
    shard = write_shard(tmp_path / "s.tar", files)
    one, other = (collect(Pictures(place), [means()]) for place in (folder, shard))
    assert np.array_equal(one.features["means"], other.features["means"])
    for a, b in zip(one.pictures, other.pictures, strict=True):
        assert (a.sha256, a.fields["prompt"], a.fields["seed"]) == (b.sha256, b.fields["prompt"], b.fields["seed"])


def test_bad_pictures_are_named_and_left_out(folder: Path):
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "17.png").write_bytes((folder / "16.png").read_bytes()[:-300])
    (folder / "18.png").write_bytes(b"no picture")
    found = collect(Pictures(folder), [means()])
    assert sorted(found.bad) == ["03.png", "17.png", "18.png"]
    assert "is no picture in any of the formats" in found.bad["03.png"] and "can't be decoded" in found.bad["17.png"]
    assert len(found.pictures) == len(found.features["means"]) == 17
    assert collect(Pictures(folder)).bad == {}  # nobody has decoded them


def test_two_encoders_share_a_reading(folder: Path, tmp_path: Path):
    one = means()
    other = PictureEncoder("other", "other-1", 3, lambda image: np.asarray(image)[:4], one.encode)
    alone = collect(Pictures(folder), [other]).features["other"]
    collect(Pictures(folder), [one], tmp_path / "c")
    both = collect(Pictures(folder), [one, other], tmp_path / "c").features
    assert np.array_equal(both["other"], alone)
    assert not np.array_equal(both["means"], alone)


# ---- the cache -------------------------------------------------------------------------------------------------------


DIGESTS = [f"{i:064x}" for i in range(5)]
VECTORS = normal(0, 5, 7)


def test_a_cache_remembers(tmp_path: Path):
    cache = FeatureCache(tmp_path / "a" / "b", "model", 7)
    assert DIGESTS[0] not in cache and cache.rows([]).shape == (0, 7)
    cache.add(DIGESTS[:2], VECTORS[:2])
    cache.add([], VECTORS[:0])
    cache.add(DIGESTS[2:], VECTORS[2:])
    for each in (cache, FeatureCache(tmp_path / "a" / "b", "model", 7)):
        assert np.array_equal(each.rows(DIGESTS[::-1]), VECTORS[::-1])
    for identity, size in (("other", 7), ("model", 6)):
        assert DIGESTS[0] not in FeatureCache(tmp_path / "a" / "b", identity, size)
    memory = FeatureCache(None, "model", 7)
    memory.add(DIGESTS, VECTORS)
    assert np.array_equal(memory.rows(DIGESTS), VECTORS)


Damage = Callable[[bytes], bytes]
CUT: dict[str, tuple[Damage, int]] = {
    "in the last record": (lambda b: b[:-5], 4),
    "in the header": (lambda b: b[:9], 0),
    "empty": (lambda b: b"", 0),
    "a byte is another": (lambda b: b[:-20] + bytes([b[-20] ^ 1]) + b[-19:], 4),
    "another program's": (lambda b: b"x" * 999, 0),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_cache_that_was_cut_short_goes_on(kind: str, tmp_path: Path):
    FeatureCache(tmp_path, "model", 7).add(DIGESTS, VECTORS)
    [path] = tmp_path.iterdir()
    damage, left = CUT[kind]
    path.write_bytes(damage(path.read_bytes()))
    cache = FeatureCache(tmp_path, "model", 7)
    assert [digest in cache for digest in DIGESTS] == [i < left for i in range(5)]
    cache.add(DIGESTS[left:], VECTORS[left:])
    assert path.read_bytes().startswith(b'{"features": "model", "size": 7}')
    assert np.array_equal(FeatureCache(tmp_path, "model", 7).rows(DIGESTS), VECTORS)


def test_two_runs_at_a_time_lose_nothing_of_each_other_that_is_wrong(tmp_path: Path):
    one, other = (FeatureCache(tmp_path, "model", 7) for _ in range(2))
    one.add(DIGESTS[:3], VECTORS[:3])
    other.add(DIGESTS[3:], VECTORS[3:])
    one.add(DIGESTS[4:], VECTORS[4:])
    found = FeatureCache(tmp_path, "model", 7)
    for digest, vector in zip(DIGESTS, VECTORS, strict=True):
        assert digest not in found or np.array_equal(found.rows([digest])[0], vector)


# ---- CLIPScore -------------------------------------------------------------------------------------------------------


def test_clipscore_is_a_hundred_cosines_above_zero():
    pictures, prompts = normal(1, 6, 5), normal(2, 6, 5)
    wanted = []
    for a, b in zip(pictures.astype(np.float64), prompts.astype(np.float64), strict=True):
        cosine = sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt(sum(a * a) * sum(b * b))
        wanted.append(100 * max(cosine, 0.0))
    assert 0.0 in wanted and max(wanted) > 0
    np.testing.assert_allclose(clip_scores(pictures, prompts), wanted, atol=100 * EXACT)
    np.testing.assert_allclose(clip_scores(pictures * 3, pictures), 100)


def test_prompts_are_encoded_once(clip: tuple[Path, ReferenceClip], mesh: jax.sharding.Mesh, tmp_path: Path):
    scorer = open_clip(clip[0], mesh, batch_size=2)
    prompts, features = ["the cat", None, "a dog", "the cat"], normal(3, 4, 20)
    first = clip_scores_of(scorer, features, prompts, tmp_path)
    assert np.isnan(first[1]) and not np.isnan(first[[0, 2, 3]]).any()
    scorer.texts = None  # type: ignore[method-assign,assignment]  # would be missed
    np.testing.assert_array_equal(clip_scores_of(scorer, features, prompts, tmp_path), first)
    with pytest.raises(ValueError, match=r"and none is known; give a manifest\.jsonl"):
        clip_scores_of(scorer, features, [None] * 4)
