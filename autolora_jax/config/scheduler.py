"""The noise schedule of a checkpoint."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NoReturn

from autolora_jax.config.base import C, ConfigError, JsonConfig, Values, keys

# Solvers by what their diffusers classes read. DPM's class is one for both kinds of model, and for two solvers.
FLOW = ("flow_euler", "flow_dpmpp_2m")
DPM = ("dpmpp_2m", "dpmpp_2m_sde", "flow_dpmpp_2m")
MULTISTEP = (*DPM, "unipc")
DISTILLED = ("lcm", "tcd")
DIFFUSION = ("euler", "euler_ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", *DISTILLED)
SPACED = ("euler", "flow_euler", *MULTISTEP)
_OF_DISTILLED: Mapping[str, Any] = {
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"clip_sample": False, "timestep_spacing": "leading"},
}


@dataclasses.dataclass(frozen=True)
class SchedulerConfig(JsonConfig):
    """The noise schedule a checkpoint was trained with, and its default solver (scheduler/scheduler_config.json).

    Defaults: SDXL's; with solver="flow_euler" and prediction_type="flow_prediction" SD3's.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    original_inference_steps: int = 50  # timesteps that LCM and TCD were distilled at
    rescale_betas_zero_snr: bool = False
    # Flow matching alone; see schedules.flow. DPM's class calls `shift` flow_shift.
    shift: float = 3.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"
    shift_terminal: float | None = None
    solver: str = "euler"  # our name of the file's _class_name; see schedules.SOLVERS
    # The file's _class_name, and as JSON what only that reads, where it is no solver of ours: another has to be named.
    unknown: str = ""

    @property
    def config(self) -> NoReturn:
        """What diffusers makes other schedulers of. Raises AttributeError that says what does the same here."""
        raise AttributeError(
            "nothing is made of a model's noise schedule: scheduler= of a call chooses the solver, 'euler', "
            "'dpmpp_2m_karras', … (autolora_jax.schedules.SOLVERS)"
        )

    # diffusers' class -> our solver; what DPM's is beside it, see VARIANTS.
    CLASSES: ClassVar[Mapping[str, str]] = {
        "EulerDiscreteScheduler": "euler",
        "EulerAncestralDiscreteScheduler": "euler_ancestral",
        "DDIMScheduler": "ddim",
        "DPMSolverMultistepScheduler": "dpmpp_2m",
        "UniPCMultistepScheduler": "unipc",
        "LCMScheduler": "lcm",
        "TCDScheduler": "tcd",
        "FlowMatchEulerDiscreteScheduler": "flow_euler",
    }
    # Other solvers of DPM's class -> what its file says then.
    VARIANTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flow_dpmpp_2m": {"use_flow_sigmas": True},
        "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    }
    FIXED: ClassVar[Values] = {
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "clip_sample": (False,),
        "disable_corrector": ((),),
        "euler_at_final": (False,),
        "interpolation_type": ("linear",),
        "invert_sigmas": (False,),
        "lambda_min_clipped": (float("-inf"), "-Infinity"),
        "lower_order_final": (True,),
        "predict_x0": (True,),
        "solver_order": (2,),
        "solver_p": (None,),
        "solver_type": ("midpoint", "bh2"),  # DPM's and UniPC's: each takes the other's for its own
        "stochastic_sampling": (False,),
        "timestep_scaling": (10.0,),
        "timestep_type": ("discrete",),
        "use_flow_sigmas": (True,),
    }
    IRRELEVANT: ClassVar[frozenset[str]] = keys(
        "clip_sample_range dynamic_thresholding_ratio sample_max_value skip_prk_steps"
    )
    # Keys that only some classes read; files keep them when a pipeline is given another scheduler.
    READ_ONLY_BY: ClassVar[Mapping[str, tuple[str, ...]]] = {
        key: solvers
        for solvers, known in (
            (DPM, "algorithm_type euler_at_final variance_type"),
            (MULTISTEP, "lower_order_final solver_order solver_type"),
            (("unipc",), "disable_corrector predict_x0 solver_p"),
            (DISTILLED, "original_inference_steps timestep_scaling"),
            (FLOW, "base_image_seq_len base_shift max_image_seq_len max_shift time_shift_type use_dynamic_shifting"),
            (
                DIFFUSION,
                "beta_end beta_schedule beta_start rescale_betas_zero_snr set_alpha_to_one steps_offset "
                "timestep_spacing trained_betas",
            ),
            (("ddim", *DISTILLED), "clip_sample"),
            ((*DIFFUSION, "flow_dpmpp_2m"), "final_sigmas_type prediction_type"),
            (("flow_dpmpp_2m",), "flow_shift use_flow_sigmas"),
            (("euler",), "interpolation_type timestep_type"),
            (("euler", "unipc"), "sigma_max sigma_min"),
            (("flow_euler",), "invert_sigmas shift shift_terminal stochastic_sampling"),
            (("dpmpp_2m", "dpmpp_2m_sde"), "lambda_min_clipped"),
            (("ddim", *MULTISTEP, *DISTILLED), "thresholding"),
            (SPACED, "use_beta_sigmas use_exponential_sigmas use_karras_sigmas"),
        )
        for key in keys(known)
    }
    # What diffusers' classes assume where a file is silent. Source: the signatures of their __init__, diffusers 0.42.1.
    ABSENT: ClassVar[Mapping[str, Any]] = {
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "clip_sample": True,
        "flow_shift": 1.0,
        "set_alpha_to_one": True,
        "shift": 1.0,
        "steps_offset": 0,
        "timestep_spacing": "linspace",
        "max_shift": 1.16,  # DPM's class has no such key; then SD3's pipeline takes this one
    }
    ABSENT_OF: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ddim": {"timestep_spacing": "leading"},
        "flow_euler": {"max_shift": 1.15},
        "lcm": _OF_DISTILLED,
        "tcd": _OF_DISTILLED,
    }

    @property
    def flow(self) -> bool:
        """Whether the network predicts the velocity of a flow."""
        return self.prediction_type == "flow_prediction"

    def __post_init__(self) -> None:
        if problems := [*_contradictions(self)]:
            raise ConfigError("; ".join(problems))

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        """Config from a parsed scheduler_config.json. Raises ConfigError for what would give other images."""
        return super().from_dict(_as_diffusers_reads(raw, where), where)

    def to_dict(self) -> dict[str, Any]:
        raw = super().to_dict()
        solver, unknown = raw.pop("solver"), raw.pop("unknown")
        diffusers_class = {solver: name for name, solver in self.CLASSES.items()}
        if solver == "flow_dpmpp_2m":
            raw["flow_shift"] = raw.pop("shift")
        raw |= self.VARIANTS.get(solver, {})
        name = diffusers_class["dpmpp_2m" if solver in self.VARIANTS else solver]
        kept = {key: value for key, value in raw.items() if _reads(solver, key)}
        # For DDIM's class, which users switch an SDXL pipeline to.
        if unknown:
            name, _, own = unknown.partition(" ")
            kept |= json.loads(own or "{}")
        return {"_class_name": name, **kept, **({} if self.flow else {"clip_sample": False})}


def _noise_alone(raw: Mapping[str, Any], instead: str, where: str) -> dict[str, Any]:
    """What of a solver's file that is none of ours another one of the same noise reads, and the rest, as it stands."""
    fields = {field.name for field in dataclasses.fields(SchedulerConfig)} - _OF_A_SOLVER | {"trained_betas"}
    kept = {key: value for key, value in raw.items() if key in fields}
    own = {k: v for k, v in raw.items() if k not in kept and not k.startswith("_") and v is not None}
    if "flow_shift" in raw:
        kept["shift"] = raw["flow_shift"]
    unknown = f"{raw['_class_name']} {json.dumps(own, sort_keys=True)}" if own else raw["_class_name"]
    return {**_as_diffusers_reads({**kept, "_class_name": instead}, where), "unknown": unknown}


_FLOW = "flow_prediction"
_OF_MULTISTEP = {
    key: SchedulerConfig.FIXED[key] for key in ("algorithm_type", "solver_order", "solver_type", "predict_x0")
}
_OF_A_SOLVER = keys(  # not of the noise
    "solver unknown use_karras_sigmas use_exponential_sigmas use_beta_sigmas final_sigmas_type original_inference_steps"
)


def _reads(solver: str, key: str) -> bool:
    return solver in SchedulerConfig.READ_ONLY_BY.get(key, (solver,))


def _as_diffusers_reads(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A scheduler's file as its class reads it: with its defaults for silent keys, without keys it does not know.

    Of a class that is none of ours the noise schedule is read, as diffusers' from_config does for another one.
    """
    name, classes = raw.get("_class_name"), SchedulerConfig.CLASSES
    if not isinstance(name, str):
        raise ConfigError(f"{where}: _class_name = {name!r} should name a scheduler, such as {', '.join(classes)}")
    if name not in classes:
        flow = name.startswith("FlowMatch") or raw.get("use_flow_sigmas") or raw.get("prediction_type") == _FLOW
        if not flow and "beta_start" not in raw:  # EDM's and consistency models' noise is another
            known = ", ".join(classes)
            raise ConfigError(f"{where}: scheduler {name!r} has no betas, so its noise is not known; known are {known}")
        instead = "FlowMatchEulerDiscreteScheduler" if flow else "EulerDiscreteScheduler"
        return _noise_alone(raw, instead, where)
    solver = classes[name]
    variants = SchedulerConfig.VARIANTS.items() if solver == "dpmpp_2m" else ()
    found = [variant for variant, says in variants if any(raw.get(key) == value for key, value in says.items())]
    flow = solver in MULTISTEP and bool(raw.get("use_flow_sigmas"))
    fits = all(raw.get(key, fixed[0]) in fixed for key, fixed in _OF_MULTISTEP.items() if _reads(solver, key))
    if len(found) > 1 or (flow and solver == "unipc") or (solver in MULTISTEP and not fits):
        return _noise_alone(raw, "FlowMatchEulerDiscreteScheduler" if flow else "EulerDiscreteScheduler", where)
    solver = "flow_dpmpp_2m" if flow else (found or [solver])[0]
    absent = {**SchedulerConfig.ABSENT, **SchedulerConfig.ABSENT_OF.get(solver, {})}
    read = {key: value for key, value in {**absent, **raw}.items() if _reads(solver, key)}
    if "flow_shift" in read:
        read["shift"] = read.pop("flow_shift")
    if solver == "flow_euler":  # all that its class can sample
        read["prediction_type"] = "flow_prediction"
    return {**read, "solver": solver}


def _contradictions(config: SchedulerConfig) -> Iterator[str]:
    """What can't be meant, or not together."""
    if config.flow != (config.solver in FLOW):
        yield (
            f"prediction_type = {config.prediction_type!r} does not go with the solver {config.solver}: "
            f"'flow_prediction' and the solvers of flows ({', '.join(FLOW)}; use_flow_sigmas = true) belong together"
        )
    spaced = [name for end in ("karras", "exponential", "beta") if getattr(config, name := f"use_{end}_sigmas")]
    if len(spaced) > 1:
        yield f"{' and '.join(spaced)} exclude each other"
    if config.solver == "flow_dpmpp_2m" and spaced:
        yield f"{spaced[0]} and use_flow_sigmas exclude each other"
    if config.solver == "flow_dpmpp_2m" and config.final_sigmas_type != "zero":
        yield f"final_sigmas_type = {config.final_sigmas_type!r} is not supported with use_flow_sigmas (only 'zero')"
    if config.shift <= 0:
        yield f"shift = {config.shift} should be above 0"
    if config.use_dynamic_shifting and config.base_image_seq_len == config.max_image_seq_len:
        yield f"base_image_seq_len and max_image_seq_len should differ, but both are {config.max_image_seq_len}"
    if not 0 <= (config.shift_terminal or 0) < 1:
        yield f"shift_terminal = {config.shift_terminal} should be between 0 (none) and 1"
