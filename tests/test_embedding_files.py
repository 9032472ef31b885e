"""Files of textual-inversion embeddings: every spelling is read, everything else is refused with its reason."""

import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from autolora_jax.config import CLIPTextConfig, T5Config, UNetConfig
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import open_tensors
from autolora_jax.weights.lora.embeddings import embedding_problems, read_embedding, read_embeddings, split_embeddings
from tests.parity import normal

L, G, T5 = 768, 1280, 4096
SDXL = {
    "unet": UNetConfig(),
    "text_encoder": CLIPTextConfig(),
    "text_encoder_2": CLIPTextConfig(hidden_size=G, intermediate_size=5120, num_attention_heads=20),
}
SD3 = {**SDXL, "text_encoder_3": T5Config()}
BOTH = {"clip_l": normal(0, 2, L), "clip_g": normal(1, 2, G)}
Tensors = Mapping[str, np.ndarray]


def saved(path: Path, tensors: Tensors) -> Path:
    save_file(dict(tensors), path)
    return path


def bundled(**words: Tensors) -> dict[str, np.ndarray]:
    return {f"bundle_emb.{word}.{part}": tensor for word, parts in words.items() for part, tensor in parts.items()}


# ---- a file of its own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "networks"),
    [
        (("clip_l", "clip_g"), SDXL),  # sd-scripts, OneTrainer
        (("text_encoders_0", "text_encoders_1"), SDXL),  # diffusers' advanced scripts, Replicate
        (("clip_l", "clip_g", "t5"), SD3),  # OneTrainer
        (("clip_l", "clip_g", "t5xxl"), SD3),  # ComfyUI
        (("clip_l", "clip_g"), SD3),  # T5 reads nothing
    ],
)
def test_every_spelling_is_read(parts: tuple[str, ...], networks: dict, tmp_path: Path):
    encoders = [name for name in networks if name.startswith("text")][: len(parts)]
    # Their numbers may differ: T5's tokens are others than CLIP's.
    vectors = [normal(i, 2 + i, width) for i, width in enumerate((L, G, T5)[: len(parts)])]
    path = saved(tmp_path / "zib.safetensors", dict(zip(parts, vectors, strict=True)))
    found, read = read_embedding(path, networks)
    assert found == path and read.keys() == set(encoders)
    for name, theirs in zip(encoders, vectors, strict=True):
        np.testing.assert_array_equal(read[name], theirs)


def test_one_vector_and_half_precision(tmp_path: Path):
    half = {"clip_l": normal(0, L).astype(ml_dtypes.bfloat16), "clip_g": normal(1, 1, G).astype(np.float16)}
    _, read = read_embedding(saved(tmp_path / "a.safetensors", half), SDXL)
    assert {name: (x.shape, x.dtype) for name, x in read.items()} == {
        "text_encoder": ((1, L), np.dtype(np.float32)),
        "text_encoder_2": ((1, G), np.dtype(np.float32)),
    }
    np.testing.assert_array_equal(read["text_encoder"][0], half["clip_l"].astype(np.float32))


@pytest.mark.parametrize(
    ("tensors", "networks", "words"),
    [
        ({}, SDXL, "'a': it has no tensors"),
        ({"clip_l": BOTH["clip_l"]}, SDXL, "nothing for text_encoder_2 \\(clip_g or text_encoders_1\\)"),
        ({"t5": normal(0, 1, T5)}, SD3, "nothing for text_encoder and text_encoder_2"),
        ({**BOTH, "clip_l": normal(0, 2, 1024)}, SDXL, "clip_l is 1024 wide, the vectors of text_encoder are 768"),
        ({**BOTH, "t5": normal(0, 1, T5)}, SDXL, "t5 is for text_encoder_3, which this model does not have"),
        ({**BOTH, "text_encoders_1": BOTH["clip_g"]}, SDXL, "clip_g and text_encoders_1 are both for text_encoder_2"),
        ({**BOTH, "clip_l": np.zeros((0, L), np.float32)}, SDXL, r"clip_l is \[0, 768\], expected \[vectors, width\]"),
        ({**BOTH, "clip_l": np.array(1, np.float32)}, SDXL, r"clip_l is \[\], expected \[vectors, width\]"),
        ({**BOTH, "clip_l": BOTH["clip_l"].astype(np.int32)}, SDXL, "clip_l is I32; weights should be"),
        ({**BOTH, "clip_g": np.full((2, G), np.nan, np.float32)}, SDXL, r"clip_g holds nan at \[0, 0\]"),
        ({"emb_params": normal(0, 4, L)}, SDXL, "one text encoder, such as Stable Diffusion 1"),
        ({"<cat-toy>": normal(0, L)}, SDXL, "<cat-toy> is no part of an embedding .clip_l, "),
        ({"lora_unet_a.lora_up.weight": normal(0, 2, 2)}, SDXL, "a LoRA is loaded with load_lora"),
        ({**BOTH, "clip_l_out": BOTH["clip_l"]}, SDXL, "clip_l_out is an output embedding .OneTrainer."),
    ],
)
def test_what_cannot_be_used_says_why(tensors: Tensors, networks: dict, words: str, tmp_path: Path):
    path = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(WeightsError, match=words) as caught:
        read_embedding(path, networks)
    assert str(path) in str(caught.value)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["easynegative.pt", "learned_embeds.bin", "zib.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_unopened(name: str, zipped: bool, tmp_path: Path):
    path = tmp_path / name
    contents = {"string_to_param": {"*": torch.zeros(1, L)}, "trap": Trap(tmp_path / "sprung")}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"it is a pickle.*never opened here; get the \.safetensors version"):
        read_embedding(path, SDXL)
    assert not (tmp_path / "sprung").exists()


# ---- bundled in a LoRA's file ----------------------------------------------------------------------------------------


def test_bundled_embeddings_are_told_from_layers():
    shapes = {key: x.shape for key, x in bundled(zib=BOTH, **{"v1.0": BOTH, "<s 0>": {"t5": normal(0, 1, T5)}}).items()}
    layer = {"lora_te1_a.lora_up.weight": (3, 2), "lora_te1_a.alpha": ()}
    words, others = split_embeddings({**shapes, **layer})
    assert others == layer
    assert words == {
        "zib": {"clip_l": "bundle_emb.zib.clip_l", "clip_g": "bundle_emb.zib.clip_g"},
        "v1.0": {"clip_l": "bundle_emb.v1.0.clip_l", "clip_g": "bundle_emb.v1.0.clip_g"},
        "<s 0>": {"t5": "bundle_emb.<s 0>.t5"},
    }
    assert split_embeddings(layer) == ({}, layer)
    assert embedding_problems({"zib": words["zib"]}, shapes) == []


def test_bundled_embeddings_are_read(tmp_path: Path):
    tensors = bundled(zib=BOTH, **{"v1.0": {name: 2 * x for name, x in BOTH.items()}})
    with open_tensors(saved(tmp_path / "lora.safetensors", tensors)) as file:
        words, _ = split_embeddings({key: info.shape for key, info in file.tensors.items()})
        read = read_embeddings(file, words, SDXL)
    assert list(read) == ["v1.0", "zib"]
    np.testing.assert_array_equal(read["zib"]["text_encoder_2"], BOTH["clip_g"])
    np.testing.assert_array_equal(read["v1.0"]["text_encoder"], 2 * BOTH["clip_l"])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"bundle_emb.clip_l": BOTH["clip_l"]}, "bundle_emb.clip_l has no word that it stands for"),
        ({"bundle_emb..clip_l": BOTH["clip_l"]}, "bundle_emb..clip_l has no word that it stands for"),
        ({"bundle_emb.": BOTH["clip_l"]}, "bundle_emb. has no word"),
        ({"bundle_emb. .clip_l": BOTH["clip_l"]}, "bundle_emb. .clip_l has no word"),
        (bundled(zib=BOTH, ZIB=BOTH), "'ZIB' and 'zib' are one word"),
        (bundled(zib={"string_to_param.*": normal(0, 1, L)}), "for a model with one text encoder"),
        (bundled(zib={**BOTH, "t5_out": normal(0, 1, T5)}), "output embedding"),
        (bundled(zib={**BOTH, "llama": normal(0, 1, T5)}), "bundle_emb.zib.llama is no part of an embedding"),
        (bundled(zib=BOTH, wolle={"clip_l": BOTH["clip_l"]}), "'wolle': it has nothing for text_encoder_2"),
    ],
)
def test_bad_bundles_say_why(tensors: Tensors, words: str, tmp_path: Path):
    with open_tensors(saved(tmp_path / "lora.safetensors", tensors)) as file:
        keys, others = split_embeddings({key: info.shape for key, info in file.tensors.items()})
        assert others == {}
        with pytest.raises(WeightsError, match=words):
            read_embeddings(file, keys, SDXL)


def test_what_is_wrong_with_any_model_is_told_without_one():
    keys, _ = split_embeddings(shapes := {"bundle_emb.a.clip_l_out": (1, 7), "bundle_emb.b.clip_l": (1, 7)})
    (problem,) = embedding_problems(keys, shapes)
    assert problem.startswith("'a': bundle_emb.a.clip_l_out is an output embedding")


def test_any_mess_ends_in_a_message(tmp_path: Path):
    """Names and shapes at random, of the pieces that real ones are made of."""
    rng = np.random.default_rng(0)
    pieces = ["bundle_emb", ".", "zib", "clip_l", "clip_g", "t5", "_out", "string_to_param", "*", "", " ", "é\n", "0"]
    for i in range(300):
        names = {"".join(rng.choice(pieces, rng.integers(1, 7))) for _ in range(rng.integers(0, 4))}
        shapes = [
            (*rng.choice([0, 1, 2], rng.integers(0, 3)), *rng.choice([2, L, G], rng.integers(0, 2))) for _ in names
        ]
        tensors = {name: np.zeros(shape, np.float16) for name, shape in zip(names, shapes, strict=True) if name}
        if i % 2:
            tensors = {f"bundle_emb.{name}": x for name, x in tensors.items()}
        path = saved(tmp_path / "mess.safetensors", tensors)
        with pytest.raises(WeightsError):
            read_embedding(path, SDXL)
        with open_tensors(path) as file:
            keys, others = split_embeddings({key: info.shape for key, info in file.tensors.items()})
            assert sum(map(len, keys.values())) + len(others) == len(tensors)
            if keys:
                with pytest.raises(WeightsError):
                    read_embeddings(file, keys, SDXL)
