"""The noise schedule of a checkpoint."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NoReturn

from autolora_jax.config.base import C, ConfigError, JsonConfig, Values, keys

# Solvers by what their diffusers classes read. DPM's class is one for both kinds of model.
DIFFUSION = ("euler", "euler_ancestral", "ddim", "dpmpp_2m")
FLOW = ("flow_euler", "flow_dpmpp_2m")
DPM = ("dpmpp_2m", "flow_dpmpp_2m")
SPACED = ("euler", "flow_euler", *DPM)


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

    # diffusers' class -> our solver; DPM's is flow_dpmpp_2m where use_flow_sigmas is true.
    CLASSES: ClassVar[Mapping[str, str]] = {
        "EulerDiscreteScheduler": "euler",
        "EulerAncestralDiscreteScheduler": "euler_ancestral",
        "DDIMScheduler": "ddim",
        "DPMSolverMultistepScheduler": "dpmpp_2m",
        "FlowMatchEulerDiscreteScheduler": "flow_euler",
    }
    FIXED: ClassVar[Values] = {
        "algorithm_type": ("dpmsolver++",),
        "clip_sample": (False,),
        "euler_at_final": (False,),
        "interpolation_type": ("linear",),
        "invert_sigmas": (False,),
        "lambda_min_clipped": (float("-inf"), "-Infinity"),
        "lower_order_final": (True,),
        "solver_order": (2,),
        "solver_type": ("midpoint",),
        "stochastic_sampling": (False,),
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
            (DPM, "algorithm_type euler_at_final lower_order_final solver_order solver_type variance_type"),
            (FLOW, "base_image_seq_len base_shift max_image_seq_len max_shift time_shift_type use_dynamic_shifting"),
            (
                DIFFUSION,
                "beta_end beta_schedule beta_start rescale_betas_zero_snr set_alpha_to_one steps_offset "
                "timestep_spacing trained_betas",
            ),
            (("ddim",), "clip_sample"),
            ((*DIFFUSION, "flow_dpmpp_2m"), "final_sigmas_type prediction_type"),
            (("flow_dpmpp_2m",), "flow_shift use_flow_sigmas"),
            (("euler",), "interpolation_type sigma_max sigma_min timestep_type"),
            (("flow_euler",), "invert_sigmas shift shift_terminal stochastic_sampling"),
            (("dpmpp_2m",), "lambda_min_clipped"),
            (("ddim", *DPM), "thresholding"),
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
            raw |= {"use_flow_sigmas": True, "flow_shift": raw.pop("shift")}
            name = diffusers_class["dpmpp_2m"]
        else:
            name = diffusers_class[solver]
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
_OF_DPM = {key: SchedulerConfig.FIXED[key] for key in ("algorithm_type", "solver_order", "solver_type")}
_OF_A_SOLVER = keys("solver unknown use_karras_sigmas use_exponential_sigmas final_sigmas_type")  # not of the noise


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
    if solver == "dpmpp_2m" and any(raw.get(key, fixed[0]) not in fixed for key, fixed in _OF_DPM.items()):
        flow = bool(raw.get("use_flow_sigmas"))
        return _noise_alone(raw, "FlowMatchEulerDiscreteScheduler" if flow else "EulerDiscreteScheduler", where)
    if solver == "dpmpp_2m" and raw.get("use_flow_sigmas"):
        solver = "flow_dpmpp_2m"
    absent = {
        **SchedulerConfig.ABSENT,
        "timestep_spacing": "leading" if solver == "ddim" else "linspace",
        # DPM's class has no such key; then SD3's pipeline takes this one.
        "max_shift": 1.15 if solver == "flow_euler" else 1.16,
    }
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
    if config.use_exponential_sigmas and config.solver != "flow_euler":
        yield "use_exponential_sigmas = True is supported with the solver flow_euler alone"
    if config.use_karras_sigmas and config.use_exponential_sigmas:
        yield "use_karras_sigmas and use_exponential_sigmas exclude each other"
    if config.solver == "flow_dpmpp_2m" and config.use_karras_sigmas:
        yield "use_karras_sigmas and use_flow_sigmas exclude each other"
    if config.solver == "flow_dpmpp_2m" and config.final_sigmas_type != "zero":
        yield f"final_sigmas_type = {config.final_sigmas_type!r} is not supported with use_flow_sigmas (only 'zero')"
    if config.shift <= 0:
        yield f"shift = {config.shift} should be above 0"
    if config.use_dynamic_shifting and config.base_image_seq_len == config.max_image_seq_len:
        yield f"base_image_seq_len and max_image_seq_len should differ, but both are {config.max_image_seq_len}"
    if not 0 <= (config.shift_terminal or 0) < 1:
        yield f"shift_terminal = {config.shift_terminal} should be between 0 (none) and 1"
