"""Roles of LoRAs: whole guided runs against weights that were merged by hand, kind by kind; and what they are told."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from diffusers import StableDiffusionXLPipeline
from safetensors.numpy import save_file

from autolora_jax import CFG, AutoGuidance, AutoLoRA, AutoLoRAPipeline, ConfigError, NoGuidance, PersonalizationGuidance
from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.lora import write_merged
from autolora_jax.pictures import parameters
from autolora_jax.schedules import make_schedule
from autolora_jax.settings import Job, Lora, ModelConfig, Settings
from autolora_jax.settings.rules import Branch, Rule
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.lora.files import read_lora, targets_of
from tests.lora_reference import COMPONENTS, random_lora
from tests.lycoris_reference import KINDS, names_of, tensors_of, trained
from tests.parity import error

FINAL = 2e-5  # of the largest latent; seen: 3.3e-6
CALL = {"negative_prompt": "mist", "height": 64, "width": 64, "num_inference_steps": 3}
PROMPTS, SEEDS = ["a cat, the dog", "mist"], [3, 5]
FILES = {"style": "tuned", "fast": "all", "worse": "base"}
SCALES = np.array([[0.8, 1.0, 0.5], [-0.4, 0.7, 0.9]], np.float32)  # [pictures, LoRAs]
RULES: dict[str, Rule] = {
    "autolora": AutoLoRA(1.5, 2.0, 3.0),
    "eq. 6": AutoLoRA(1.5, 1.0, 1.0),
    "autoguidance": AutoGuidance(1.8),
    "personalization": PersonalizationGuidance(3.0, 0.4),
    "interval": AutoLoRA(1.5, 2.0, 3.0, start=0.4),
}
# What ARCHITECTURE.md says of roles, once more: role -> factor on (base, weak, tuned), with ω.
FACTORS = {"tuned": (0.0, None, 1.0), "all": (1.0, 1.0, 1.0), "base": (1.0, 0.0, 0.0)}


@pytest.fixture(scope="module")
def files(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Low rank in all components; every kind of LyCORIS in turn in all; low rank of convolutions, too."""
    folder = tmp_path_factory.mktemp("roles")
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    random_lora(theirs, seed=3).save(folder / "style.safetensors", "peft")
    random_lora(theirs, seed=4, convolutions=True).save(folder / "worse.safetensors", "peft")
    layers = {name: layer for c in COMPONENTS for name, layer in names_of(theirs, c).items()}
    kinds = [kind for kind in KINDS if kind != "norm"]
    tensors: dict[str, np.ndarray] = {}
    for i, (name, layer) in enumerate(layers.items()):
        is_norm = type(layer).__name__.endswith("Norm")
        tensors |= tensors_of(trained("norm" if is_norm else kinds[i % len(kinds)], name, layer, i, strength=0.3))
    save_file(tensors, folder / "fast.safetensors")
    return {name: folder / f"{name}.safetensors" for name in FILES}


@pytest.fixture(scope="module")
def pipe(small_folder: Path, files: dict[str, Path]) -> AutoLoRAPipeline:
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    for name, role in FILES.items():
        pipe.load_lora(files[name], role=role)
    return pipe


class ByHand:
    """Models whose weights hold the LoRAs at some scales, each written as a checkpoint and loaded without any LoRA."""

    def __init__(self, folder: Path, files: dict[str, Path], into: Path) -> None:
        self.checkpoint, self.into = open_checkpoint(folder), into
        targets = targets_of(self.checkpoint.networks)
        self.files = [read_lora(files[name], targets) for name in FILES]
        self.made: dict[tuple[float, ...], AutoLoRAPipeline] = {}

    def at(self, scales: np.ndarray) -> AutoLoRAPipeline:
        key = tuple(scales.tolist())
        if key not in self.made:
            out = self.into / str(len(self.made))
            write_merged(self.checkpoint, list(zip(self.files, key, strict=True)), out)
            self.made[key] = AutoLoRAPipeline.from_pretrained(out, dtype="float32", devices=jax.devices()[:1])
        return self.made[key]


@pytest.fixture(scope="module")
def by_hand(small_folder: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    return ByHand(small_folder, files, tmp_path_factory.mktemp("by_hand"))


@partial(jax.jit, static_argnames="network")
def evaluate(network: Any, params: Any, x: Any, t: Any, told: Any) -> Any:
    return network.apply({"params": params}, x, t, **told)


def run(by_hand: ByHand, rule: Rule, scales: np.ndarray, i: int, base_text: str = "base") -> np.ndarray:
    """The latents [h w c] of picture i. scales: [steps, LoRAs]."""
    omega = getattr(rule, "omega", 0.0)
    weights = {}
    for k, kind in enumerate(("base", "weak", "lora")):
        columns = [FACTORS[role][k] for role in FILES.values()]
        weights[kind] = scales * np.array([omega if c is None else c for c in columns], np.float32)
    texts = {**weights, "base": weights[base_text]}
    any_model = by_hand.at(weights["lora"][0])
    table, x = make_schedule(any_model.scheduler, len(scales)), noise(any_model, i)
    x = np.asarray(table.initial_scale) * x

    def e(branch: Branch, step: int, x: np.ndarray) -> np.ndarray:
        model = by_hand.at(weights[branch.weights][step])
        teller = by_hand.at(texts[branch.weights].mean(axis=0))
        told = teller.conditioning(PROMPTS[i], CALL["negative_prompt"], height=64, width=64)["base"]
        told = {name: array[:, branch.prompt] for name, array in told.items()}
        t = np.full(1, table.timestep[step], np.float32)
        return np.asarray(evaluate(model.denoiser, model.params["unet"], x, t, told))

    for step in range(len(scales)):
        active = rule if int(rule.start * len(scales)) <= step else rule.outside()
        seen = table.input_scale[step] * x
        guided = sum(c * e(branch, step, seen) for branch, c in active.coefficients().items() if c)
        denoised = table.denoised_from_x[step] * x + table.denoised_from_prediction[step] * guided
        x = table.keep[step] * x + table.toward[step] * denoised
    return x[0]


def noise(pipe: AutoLoRAPipeline, i: int) -> np.ndarray:
    from autolora_jax.noise import initial_noise

    return initial_noise([SEEDS[i]], (8, 8, 4), "jax")


def draw(pipe: AutoLoRAPipeline, **changes: Any) -> np.ndarray:
    call = {"seeds": SEEDS, "paired": True, "output_type": "latent", "lora_scale": SCALES, **CALL, **changes}
    return pipe(PROMPTS, **call).images


@pytest.mark.parametrize("rule", RULES)
def test_a_role_is_a_factor_on_each_kind_of_weights(pipe: AutoLoRAPipeline, by_hand: ByHand, rule: str):
    ours = draw(pipe, guidance=RULES[rule])
    steps = CALL["num_inference_steps"]
    theirs = [run(by_hand, RULES[rule], np.tile(SCALES[i], (steps, 1)), i) for i in range(2)]
    assert error(ours, np.stack(theirs)) < FINAL
    assert error(ours, draw(pipe, guidance=RULES[rule], lora_scale=SCALES * [1, 0, 1])) > 0.01


def test_base_text_of_the_lora_is_all_that_acts_there(pipe: AutoLoRAPipeline, by_hand: ByHand):
    rule = RULES["autoguidance"]
    theirs = run(by_hand, rule, np.tile(SCALES[0], (3, 1)), 0, base_text="lora")
    assert error(draw(pipe, guidance=rule, base_text="lora")[0], theirs) < FINAL


def test_roles_hold_at_every_step(pipe: AutoLoRAPipeline, by_hand: ByHand):
    """Scales over the steps; the text encoders take the mean."""
    rule = RULES["eq. 6"]
    over = SCALES[0] * np.array([[1.0], [0.25], [0.0]], np.float32)
    ours = pipe(PROMPTS[0], seeds=[SEEDS[0]], guidance=rule, output_type="latent", lora_scale=over[None], **CALL).images
    assert error(ours[0], run(by_hand, rule, over, 0)) < FINAL


# ---- what follows from a role ----------------------------------------------------------------------------------------


def test_one_strength_is_that_of_the_tuned_model(pipe: AutoLoRAPipeline):
    one, each = draw(pipe, lora_scale=0.6), draw(pipe, lora_scale=[[0.6, 1.0, 1.0]])
    np.testing.assert_array_equal(one, each)
    per_picture = draw(pipe, lora_scale=[0.6, 0.3])
    np.testing.assert_array_equal(per_picture, draw(pipe, lora_scale=[[0.6, 1.0, 1.0], [0.3, 1.0, 1.0]]))


def test_the_usual_guidance_needs_two_models(small_folder: Path, files: dict[str, Path]):
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(files["fast"], role="all")
    call = {"seeds": [1], "output_type": "latent", **CALL}
    [settings] = pipe("a cat", **call).settings
    assert settings["guidance"] == CFG(5.0) and settings["lora_roles"] == ["all"]
    with pytest.raises(ValueError, match="compares a tuned model with its base, but all LoRAs act on both"):
        pipe("a cat", guidance=AutoLoRA(), **call)
    with pytest.raises(ValueError, match=r"lora_scale=0\.5 is of LoRAs with the role 'tuned', and none is loaded"):
        pipe("a cat", guidance=NoGuidance(), lora_scale=0.5, **call)
    pipe.load_lora(files["worse"], role="base")
    [settings] = pipe("a cat", **call).settings
    assert isinstance(settings["guidance"], AutoLoRA) and "role base" in str(pipe)
    with pytest.raises(ConfigError, match="role = 'al' is not known: did you mean 'all'"):
        pipe.load_lora(files["style"], role="al")
    assert len(pipe.reports) == 2


def test_what_the_prompt_means_to_the_base_model_is_told(pipe: AutoLoRAPipeline, by_hand: ByHand):
    told = pipe.conditioning("a cat", height=64, width=64)
    alone = by_hand.at(np.array([0, 1, 1], np.float32)).conditioning("a cat", height=64, width=64)["base"]
    for name, array in alone.items():
        assert error(told["base"][name], array) < FINAL
    assert error(told["lora"]["encoder_hidden_states"], alone["encoder_hidden_states"]) > 0.01


def test_pictures_tell_of_roles(pipe: AutoLoRAPipeline):
    call = {"num_inference_steps": 1, "height": 64, "width": 64, "seeds": [1]}
    [settings] = pipe("a cat", **call).settings
    assert settings["lora_roles"] == ["tuned", "all", "base"] and "LoRA roles: tuned all base" in parameters(settings)
    assert "LoRA roles" not in parameters({**settings, "lora_roles": None})


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("a.safetensors", Lora("a.safetensors")),
        ("a.safetensors:0.5", Lora("a.safetensors", 0.5)),
        ("a.safetensors:0.5@all", Lora("a.safetensors", 0.5, "all")),
        ("a.safetensors@base", Lora("a.safetensors", 1.0, "base")),
        ("builtin:style@all", Lora("builtin:style", 1.0, "all")),
        ("me@home.safetensors", Lora("me@home.safetensors")),
        ("me@home.safetensors:2", Lora("me@home.safetensors", 2.0)),
        (r"C:\loras\a.safetensors", Lora(r"C:\loras\a.safetensors")),
        ("a.safetensors:0,1@all", Lora("a.safetensors", (0.0, 1.0), "all")),
        (r"C:\loras\a.safetensors:-0.5,1,1e-3", Lora(r"C:\loras\a.safetensors", (-0.5, 1.0, 1e-3))),
        ("a:0.8[down=1,mid=.5,up.0=0]", Lora("a", 0.8, blocks="down=1,mid=0.5,up.0=0")),
        ("builtin:style:0,0.5[text_encoder=0]@base", Lora("builtin:style", (0.0, 0.5), "base", "text_encoder=0")),
        ("a[mid=0]", Lora("a", blocks="mid=0")),
        ("a[1,0,0,0,0,1,1,1,1,1,1,1]", Lora("a", blocks="1,0,0,0,0,1,1,1,1,1,1,1")),
        ("style [v2]", Lora("style [v2]")),
        ("style [2].safetensors", Lora("style [2].safetensors")),
        ("style [2]:0.5[mid=0]", Lora("style [2]", 0.5, blocks="mid=0")),
        ("a=b, c.safetensors", Lora("a=b, c.safetensors")),
    ],
)
def test_a_role_is_spelled_behind_the_strength(text: str, lora: Lora):
    assert Lora.parse(text) == lora == Lora.parse(str(lora))


def test_no_role_is_named():
    with pytest.raises(ConfigError, match=r"role of the LoRA a\.safetensors = 'al' is not known: did you mean 'all'"):
        Lora.parse("a.safetensors:0.5@al")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a:0.8[down=much]",
            "block weights of the LoRA a = 'down=much' should be a factor for each block, such as down=1",
        ),
        ("a:0.8[down=1,2]", "= 'down=1,2' should be a factor for each block"),
        ("a[down=1,down=2]", "should be a factor for each block"),
        ("a:1[d n=1]", "should be a factor for each block"),
        ("a:0,nan", "need a file and a finite scale"),
        ("a:0,1[mid=0]@al", "role of the LoRA a = 'al' is not known: did you mean 'all'"),
    ],
)
def test_what_is_no_strength_and_no_block_weights_is_named(text: str, said: str):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Lora.parse(text)


def test_what_a_file_bears_is_its_name(tmp_path: Path):
    for name in ("a:0,1", "a:1[mid=0]", "a[mid=0]@all", "a[1,2]"):
        (tmp_path / name).touch()
        assert Lora.parse(f"{tmp_path / name}") == Lora(f"{tmp_path / name}")
        for lora in (Lora(f"{tmp_path / name}", (0.0, 1.0), "base", "mid=0"), Lora(f"{tmp_path / name}", 0.5)):
            assert Lora.parse(str(lora)) == lora
    (tmp_path / "b").touch()
    with pytest.raises(ConfigError, match=r"b = '0,x' should be a number such as 0\.8, or several over the steps"):
        Lora.parse(f"{tmp_path / 'b'}:0,x")


def test_jobs_know_strengths_over_the_steps_and_block_weights():
    def row(lora: str, **more: Any) -> Any:
        settings = Settings(model=ModelConfig("builtin"), loras=(Lora.parse(lora),), **more)
        job = Job(settings=settings, prompts=["a zib"], seeds=(1,))
        assert Job.of_table(yaml.safe_load(yaml.safe_dump(job.to_table()))).settings == settings
        return make_plan(job, Sources()).row(0)

    texts = ["0.5", "0,1", "1,0", "0.5[mid=0]", "0.5[mid=0.5]", "0,1[mid=0]"]
    rows = [row(f"builtin:character:{text}") for text in texts]
    assert len({each.key for each in rows}) == len(texts)
    assert len({each.recipe.load.names for each in rows}) == 3  # what is loaded anew
    columns = [[each.settings[name] for name in ("lora_scales", "lora_strengths", "lora_blocks")] for each in rows]
    assert columns[0] == [[0.5], None, None] and columns[5] == [[0.5], ["0.0,1.0"], ["mid=0"]]
    assert 'LoRA strengths: "0.0,1.0", LoRA blocks: [mid=0]' in parameters(rows[5].settings)
    assert row("builtin:character:0,1", lora_scale=0.5).key == rows[0].key  # one for all steps
    with pytest.raises(ValueError, match="block weights name 'middle', of which unet has no layer"):
        row("builtin:character[middle=0]")


def test_jobs_know_roles():
    def rows(*loras: str, **more: Any) -> list[Any]:
        settings = Settings(model=ModelConfig("builtin"), loras=tuple(map(Lora.parse, loras)), **more)
        plan = make_plan(Job(settings=settings, prompts=["a zib"], seeds=(1,)), Sources())
        return [plan.row(i) for i in range(len(plan.keys))]

    [plain], [fast] = rows("builtin:character", "builtin:style"), rows("builtin:character", "builtin:style@all")
    assert plain.key != fast.key and plain.recipe.load.names != fast.recipe.load.names
    assert plain.recipe.columns["lora_roles"] is None and "lora_roles" not in plain.recipe.identity
    assert fast.recipe.columns["lora_roles"] == fast.settings["lora_roles"] == ["tuned", "all"]
    assert fast.recipe.rule == AutoLoRA(1.5, 5.0, 5.0)
    [alone] = rows("builtin:style@all")
    assert alone.recipe.rule == CFG(5.0)
    [scaled] = rows("builtin:character", "builtin:style@all", lora_scale=0.25)
    assert scaled.recipe.scales == (0.25, 1.0)
    with pytest.raises(ConfigError, match="all LoRAs act on both"):
        rows("builtin:style@all", guidance=AutoLoRA())
