"""Plans: what a key depends on, which pictures share a batch, and what 100,000 of them cost."""

import dataclasses
import hashlib
import itertools
import json
import time
import tracemalloc

import numpy as np
import pytest

from autolora_jax import CFG, AutoGuidance, AutoLoRA, ConfigError, NoGuidance, PersonalizationGuidance
from autolora_jax.batch import Job, Prompt, Settings
from autolora_jax.batch.plan import Batch, Plan
from autolora_jax.batch.work import spans
from autolora_jax.pictures import parameters
from autolora_jax.settings import DrawingConfig, Lora, ModelConfig
from autolora_jax.settings.fields import settings_of
from autolora_jax.settings.pictures import SKIP, SKIPPING
from autolora_jax.settings.rules import FORMS
from tests.batch_jobs import SETTINGS, plan_of

MANY, MOST_SECONDS, MOST_BYTES = 100_000, 20, 40e6  # seen: 3 to 6 s
ALL = np.arange


def plan(*prompts: str | Prompt, **changes) -> Plan:
    return plan_of(Job(**{"prompts": prompts or ("a",), "settings": SETTINGS, **changes}))


def key(**changes) -> str:
    """Of one picture, with some settings changed."""
    return plan(settings=dataclasses.replace(SETTINGS, **changes)).row(0).key


# ---- keys ------------------------------------------------------------------------------------------------------------

# Setting -> values that draw different pictures.
DECISIVE = {
    "model": [ModelConfig("m"), ModelConfig("m", dtype="float32"), ModelConfig("m", vae_dtype="float32")],
    "loras": [
        *((), (Lora("a"),), (Lora("b"),), (Lora("a"), Lora("b")), (Lora("b"), Lora("a")), (Lora("a", 0.7),)),
        *((Lora("a", role="all"),), (Lora("a", role="base"),)),
    ],
    "embeddings": [("a",), ("b",)],
    "lora_scale": [0.2, 0.3],
    "guidance": [
        NoGuidance(),
        CFG(2.0),
        CFG(2.0, start=0.5),
        CFG(2.0, stop=0.5),
        AutoLoRA(1.5, 2.0, 3.0),
        AutoLoRA(1.5, 3.0, 2.0),
        AutoLoRA(1.6, 2.0, 3.0),
        AutoGuidance(2.0),
        PersonalizationGuidance(2.0, 0.5),
        PersonalizationGuidance(2.0, 0.6),
        CFG(2.0, refresh_uncond=2),
        AutoLoRA(1.5, 2.0, 3.0, refresh_base=2),
        *(CFG(2.0, **{form: 0.5}) for form in FORMS),
    ],
    "num_inference_steps": [3, 4],
    "scheduler": ["ddim"],
    "timestep_spacing": ["linspace"],
    "guidance_rescale": [0.5],
    "noise": ["torch"],
    "prompt_syntax": ["a1111", "comfy"],
    "prompt_chunks": [2],
    "size": [(16, 32), (32, 16)],
    "clip_skip": [0, 1],
    "base_text": ["lora"],
}
# Values that draw the same pictures.
ALIKE = [
    ({"model": ModelConfig("fake")}, {"model": ModelConfig("fake", weight_shards=2)}),
    ({"model": ModelConfig("fake")}, {"model": ModelConfig("fake", text_encoder_3="host")}),
    ({"guidance": None}, {"guidance": AutoLoRA(1.5, 5.0, 5.0)}),
    ({"guidance": CFG(2.0)}, {"guidance": CFG(2.0, refresh_uncond=1, apg_eta=1.0)}),
    ({"lora_scale": 0.7}, {"loras": (Lora("a", 0.7),)}),
    ({"scheduler": None}, {"scheduler": "euler"}),
    ({"scheduler": "tcd"}, {"scheduler": "tcd", "eta": 0.3}),
    ({"size": None}, {"size": (1024, 1024)}),
    ({"max_sequence_length": 256}, {"max_sequence_length": 128}),  # SDXL has no T5
]


def test_every_setting_that_decides_a_picture_is_in_its_key():
    # A LoRA that is found in a folder is in it; strength is of pictures that are changed: tests/test_batch_images.py.
    rest = {"max_sequence_length", "lora_dir", "strength", "eta"}  # η is TCD's alone
    rest |= {SKIP, *SKIPPING}  # SD3's alone
    assert DECISIVE.keys() | rest == {field.name for field in dataclasses.fields(Settings)}
    keys = [key(), *(key(**{name: value}) for name, values in DECISIVE.items() for value in values)]
    keys += [key(scheduler="tcd", eta=eta) for eta in (None, 0.5)]
    assert len(set(keys)) == len(keys)
    texts = [plan(prompts=("b",)), plan(seeds=(1,)), plan(negative_prompt="b"), plan(negative_prompt=None)]
    assert len({key(), *(text.row(0).key for text in texts)}) == 5


@pytest.mark.parametrize(("one", "other"), ALIKE, ids=lambda value: "-".join(value))
def test_what_decides_nothing_is_not(one: dict, other: dict):
    assert key(**one) == key(**other)


def test_layers_that_are_skipped_are_in_the_key_and_counted():
    """Skip-layer guidance of SD3.5 Medium costs an evaluation where it holds, and another program."""
    sd3 = dataclasses.replace(SETTINGS, model=ModelConfig("sd3.5"), guidance=CFG(4.0), num_inference_steps=30)
    asked: list[dict] = [{}, {SKIP: "7-9"}, {SKIP: "7,8"}, *({SKIP: "7-9", name: 0.5} for name in SKIPPING)]
    plans = [plan(settings=dataclasses.replace(sd3, **each)).row(0) for each in asked]
    assert len({row.key for row in plans}) == len(asked)
    none, skips = plans[0].recipe, plans[1].recipe
    assert (none.evaluations, skips.evaluations) == (60, 60 + 5)  # steps 1 to 5 of 30
    assert [skips.columns[name] for name in (SKIP, *SKIPPING)] == ["7-9", 2.8, 0.01, 0.2]
    assert [none.columns[name] for name in (SKIP, *SKIPPING)] == [None] * 4
    off = {SKIP: "7-9", SKIPPING[0]: 0.0}, {SKIPPING[1]: 0.5}
    assert {plan(settings=dataclasses.replace(sd3, **each)).row(0).key for each in off} == {plans[0].key}
    stronger = plan(settings=dataclasses.replace(sd3, **{SKIP: "7-9", SKIPPING[0]: 1.0})).recipes[0]
    assert stronger.program == skips.program != none.program
    assert "SLG layers: 7-9, SLG scale: 2.8, SLG start: 0.01, SLG stop: 0.2" in parameters(plans[1].settings)


def test_seeds_are_those_of_their_noise():
    assert plan(seeds=(2**64 - 1,)).row(0).seed == 2**64 - 1
    torchs = plan(seeds=(-5,), settings=dataclasses.replace(SETTINGS, noise="torch"))
    assert torchs.row(0).seed == -5
    with pytest.raises(ConfigError, match=r"seeds = -5 should be .* from 0 to 2\^64 - 1; with noise='torch' down to"):
        plan(seeds=(3, -5))


def test_a_key_is_the_hash_of_canonical_json():
    row = plan('a "süß"\n', negative_prompt=None, seeds=(2**63 - 1,)).row(0)
    told = {"picture": [row.prompt, None, row.seed], "settings": json.loads(row.recipe.identity)}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    assert row.key == hashlib.sha256(text.encode()).hexdigest()[:20]


def test_keys_stay_what_they_are():
    """This one changes with recipe.VERSION alone: pictures that users have would be drawn again."""
    assert key() == "a617b28cef490397767f"


def test_the_same_twice_is_drawn_once():
    twice = plan(Prompt("a", seeds="0-1"), "b", Prompt("a", id="again", seeds=(1, 2)), grid={"clip_skip": [0, 1]})
    assert (len(twice), twice.duplicates) == (2 * 2 + 2 * 1 + 2 * 2, 2)
    assert [twice.row(int(i)).seed for i in np.flatnonzero(~twice.first)] == [1, 1]


def test_order_is_prompt_settings_seed():
    rows = [plan("a", Prompt("b", "no", (7,)), seeds=(0, 1), grid={"clip_skip": [0, 1]}).row(i) for i in range(6)]
    found = [(row.prompt, row.negative_prompt, row.recipe.drawing.clip_skip, row.seed) for row in rows]
    assert found == [("a", "", skip, seed) for skip in (0, 1) for seed in (0, 1)] + [
        ("b", "no", skip, 7) for skip in (0, 1)
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": ()}, "prompts"),
        ({"settings": dataclasses.replace(SETTINGS, num_inference_steps=2000)}, "1000 training timesteps"),
        ({"settings": dataclasses.replace(SETTINGS, scheduler="flow_euler")}, "not for this checkpoint"),
        ({"settings": dataclasses.replace(SETTINGS, loras=(), guidance=AutoLoRA())}, "no LoRA"),
        (
            {"settings": dataclasses.replace(SETTINGS, skip_guidance_layers="7-9")},
            "none that can be skipped: it is for",
        ),
        (
            {"settings": dataclasses.replace(SETTINGS, model=ModelConfig("sd3.5"), skip_guidance_layers="23,24")},
            "skip_guidance_layers = 23-24 names layer 24; this model has layers 0 to 23",
        ),
    ],
)
def test_what_could_not_be_drawn_is_said_before_anything_is_loaded(changes: dict, words: str):
    with pytest.raises(ValueError, match=words):
        plan_of(Job(**{"prompts": ("a",), "settings": SETTINGS, **changes}))
    assert issubclass(ConfigError, ValueError)


# ---- batches ---------------------------------------------------------------------------------------------------------

GRID = {
    "guidance": [CFG(3.0), AutoLoRA(1.5), AutoLoRA(2.0), AutoLoRA(1.0)],
    "loras": [Lora("a", 0.5), Lora("a", 1.0), Lora("b")],
    "size": [(16, 16), (16, 32)],
    "guidance_rescale": [0.0, 0.5],
    "model": [ModelConfig("one"), ModelConfig("two")],
}


def test_batches_hold_everything_once_and_only_what_one_program_draws():
    many = plan("a", "b", seeds=(0, 1, 2), grid=GRID)
    batches = many.batches(ALL(len(many)), 4)
    items = np.concatenate([batch.items for batch in batches])
    assert sorted(items.tolist()) == list(range(len(many)))
    assert [batch.number for batch in batches] == list(range(len(batches)))
    for batch in batches:
        recipes = [row.recipe for row in many.rows(batch)]
        assert len({recipe.program for recipe in recipes}) == len({recipe.load.names for recipe in recipes}) == 1
    mixed = [{row.recipe.rule for row in many.rows(batch)} for batch in batches]
    assert {AutoLoRA(1.5, 5.0, 5.0), AutoLoRA(2.0, 5.0, 5.0)} in mixed  # numbers mix, branches do not
    assert not any(
        AutoLoRA(1.0, 5.0, 5.0) in rules and len(rules) > 1 and AutoLoRA(2.0, 5.0, 5.0) in rules for rules in mixed
    )


def test_every_set_of_files_is_loaded_once():
    many = plan("a", "b", seeds=(0, 1, 2), grid=GRID)
    loads = [many.row(int(batch.items[0])).recipe.load.names for batch in many.batches(ALL(len(many)), 4)]
    runs = [names for names, _ in itertools.groupby(loads)]
    assert len(runs) == len(set(runs)) == 4
    assert [model.source for model, _, _ in runs] == ["one", "one", "two", "two"]


def scales_of(many: Plan, batch: Batch) -> int:
    """How many LoRA scales a batch has."""
    return len({row.recipe.one_scale for row in many.rows(batch)})


@pytest.mark.parametrize(("seeds", "alike"), [(16, True), (3, False)])
def test_scales_mix_only_where_rows_would_be_wasted(seeds: int, alike: bool):
    many = plan(seeds=tuple(range(seeds)), grid={"lora_scale": [0.2, 0.4, 0.6, 0.8]})
    batches = many.batches(ALL(len(many)), 4)
    assert {scales_of(many, batch) == 1 for batch in batches} == {alike}
    assert len(batches) == seeds


def test_omega_is_a_scale_too():
    many = plan(seeds=(0, 1), grid={"guidance": [PersonalizationGuidance(2.0, omega) for omega in (0.2, 0.4)]})
    assert [scales_of(many, batch) for batch in many.batches(ALL(4), 4)] == [2]
    assert [scales_of(many, batch) for batch in many.batches(ALL(4), 2)] == [1, 1]


def test_batches_follow_from_the_plan_what_is_wanted_and_the_rows():
    many = plan("a", "b", seeds=tuple(range(7)), grid=GRID)
    some = ALL(len(many))[::3]

    def packed() -> list:
        return [(b.number, b.items.tolist(), b.rows) for b in many.batches(some, 8)]

    assert packed() == packed()
    assert sorted(itertools.chain(*(items for _, items, _ in packed()))) == some.tolist()


def test_programs_are_told_apart_by_all_that_the_pipeline_takes_once_a_call():
    """Of two pictures in a batch no setting differs but those that say they may."""
    recipe = plan(settings=dataclasses.replace(SETTINGS, guidance_rescale=0.2)).recipes[0]
    other = {"base_text": "lora", "scheduler": "ddim", "timestep_spacing": "linspace", "noise": "torch", "size": (8, 8)}
    other |= {"num_inference_steps": 9, "clip_skip": 1, "max_sequence_length": 77, "guidance": CFG(9.0)}
    other |= {"guidance_rescale": 0.7, "lora_scale": 0.3, "prompt_syntax": "comfy", "prompt_chunks": 2, "strength": 0.5}
    other |= {"eta": 0.5, SKIP: "1", **dict.fromkeys(SKIPPING, 0.5)}
    for field in settings_of(DrawingConfig):
        changed = dataclasses.replace(recipe.drawing, **{field.name: other[field.name]})
        same = dataclasses.replace(recipe, drawing=changed).program == recipe.program
        assert same == field.said.by_picture, field.name


@pytest.mark.parametrize("items", [[], [5], [0, 1, 2], [0, 2, 3, 9], [1, 3, 5]])
def test_spans_are_the_items(items: list[int]):
    found = spans(np.array(items, np.int64))
    assert list(itertools.chain(*(range(a, b + 1) for a, b in found))) == items


# ---- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["prompts", "seeds"])
def test_a_hundred_thousand_pictures_start_at_once_and_fit(shape: str):
    prompts, seeds = (MANY // 40, 10) if shape == "prompts" else (1, MANY // 4)
    job = Job(
        prompts=tuple(f"a cat number {i} on a table, watercolour, very detailed" for i in range(prompts)),
        seeds=tuple(range(seeds)),
        settings=SETTINGS,
        grid={"lora_scale": [0.5, 1.0], "guidance": [CFG(3.0), AutoLoRA(1.5)]},
    )
    tracemalloc.start()
    begun = time.monotonic()
    many = plan_of(job)
    batches = many.batches(np.flatnonzero(many.first), 8)
    seconds, (_, most) = time.monotonic() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(many) == MANY == sum(len(batch.items) for batch in batches)
    assert seconds < MOST_SECONDS
    assert most < MOST_BYTES
