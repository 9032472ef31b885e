"""What XLA's CUDA compiler makes of the library: kernels are counted off a program's text, and limited at full size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpus
from benchmarks.gpu_compile import PROGRAMS, logits, measure
from benchmarks.kernels import kernels

TEXT = """HloModule jit_step, is_scheduled=true

%fused_merge (p0: bf16[64,8], p1: bf16[8,32], p2: bf16[64,32]) -> bf16[64,32] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  %p1 = bf16[8,32]{1,0} parameter(1)
  %p2 = bf16[64,32]{1,0} parameter(2)
  %dot.1 = bf16[64,32]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %add = bf16[64,32]{1,0} add(%dot.1, %p2)
}

%tuned (arg: (bf16[64,8], bf16[8,32], bf16[64,32])) -> bf16[64,32] {
  %arg = (bf16[64,8]{1,0}, bf16[8,32]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %a = bf16[64,8]{1,0} get-tuple-element(%arg), index=0
  %b = bf16[8,32]{1,0} get-tuple-element(%arg), index=1
  %c = bf16[64,32]{1,0} get-tuple-element(%arg), index=2
  ROOT %gemm_fusion = bf16[64,32]{1,0} fusion(%a, %b, %c), kind=kCustom, calls=%fused_merge, metadata={op_name="jit(step)/attn1/to_q/merge/add"}
}

%base (arg.1: (bf16[64,8], bf16[8,32], bf16[64,32])) -> bf16[64,32] {
  %arg.1 = (bf16[64,8]{1,0}, bf16[8,32]{1,0}, bf16[64,32]{1,0}) parameter(0)
  ROOT %copy.1 = bf16[64,32]{1,0} copy(%c.1)
  %c.1 = bf16[64,32]{1,0} get-tuple-element(%arg.1), index=2
}

%body (x: (s32[], f32[16])) -> (s32[], f32[16]) {
  %x = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%x), index=0
  %v = f32[16]{0} get-tuple-element(%x), index=1
  %twice = f32[16]{0} add(%v, %v), metadata={op_name="jit(step)/add"}
  ROOT %out = (s32[], f32[16]{0}) tuple(%i, %twice)
}

%condition (y: (s32[], f32[16])) -> pred[] {
  %y = (s32[], f32[16]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%fused_nothing (n: bf16[2,256,4,64]) -> f32[2,4,256,77] {
  ROOT %n = bf16[2,256,4,64]{3,2,1,0} parameter(0)
}

%fused_slice (p: f32[64,16], at: s32[]) -> f32[1,16] {
  %p = f32[64,16]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %view = f32[64,16]{1,0} bitcast(%p)
  ROOT %slice = f32[1,16]{1,0} dynamic-slice(%view, %at, %at), dynamic_slice_sizes={1,16}
}

%fused_update (p.1: f32[64,16], row: f32[1,16], at.1: s32[]) -> f32[64,16] {
  %p.1 = f32[64,16]{1,0} parameter(0)
  %row = f32[1,16]{1,0} parameter(1)
  %at.1 = s32[] parameter(2)
  ROOT %put = f32[64,16]{1,0} dynamic-update-slice(%p.1, %row, %at.1, %at.1)
}

ENTRY %main (q: bf16[2,256,4,64], image: f32[1,8,8,4], w: f32[6,3,3,4], flag: pred[], t: (bf16[64,8], bf16[8,32], bf16[64,32]), s: (s32[], f32[16])) -> bf16[64,32] {
  %q = bf16[2,256,4,64]{3,2,1,0} parameter(0), metadata={op_name="q (of all)"}
  %image = f32[1,8,8,4]{3,2,1,0} parameter(1)
  %w = f32[6,3,3,4]{3,2,1,0} parameter(2)
  %flag = pred[] parameter(3)
  %t = (bf16[64,8]{1,0}, bf16[8,32]{1,0}, bf16[64,32]{1,0}) parameter(4)
  %s = (s32[], f32[16]{0}) parameter(5)
  %table = f32[64,16]{1,0} parameter(6)
  %number = s32[] parameter(7)
  %sliced = f32[1,16]{1,0} fusion(%table, %number), kind=kLoop, calls=%fused_slice
  %updated = f32[64,16]{1,0} fusion(%table, %sliced, %number), kind=kLoop, calls=%fused_update
  %fmha = (bf16[2,4,256,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "256", "256"], "tuple_shapes": []}}}
  %conv = (f32[1,8,8,6]{3,2,1,0}, u8[0]{0}) custom-call(%image, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward"
  %logits = f32[2,4,256,77]{3,2,1,0} fusion(%q), kind=kLoop, calls=%fused_nothing, metadata={op_name="jit(step)/attn2/bthd,bshd->bhts/dot_general"}
  %while.1 = (s32[], f32[16]{0}) while(%s), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %which = bf16[64,32]{1,0} conditional(%flag, %t, %t), true_computation=%tuned, false_computation=%base
}
"""  # noqa: E501


def test_kernels_by_hand():
    """Each as often as it runs; what only names or calls is none."""
    found = kernels(TEXT)
    assert [kernel.name for kernel in found] == [
        *("sliced", "updated", "fmha", "conv", "logits", "twice", "twice", "twice", "gemm_fusion", "copy.1")
    ]
    by_name = {kernel.name: kernel for kernel in found}
    q, pictures = 2 * 2 * 256 * 4 * 64, 4 * 64 * (4 + 6)
    assert by_name["fmha"].moved == 2 * q  # an operand that stands three times is read once
    assert by_name["fmha"].attention == by_name["fmha"].flop["bf16"] == 4 * 2 * 4 * 256 * 256 * 64
    assert by_name["conv"].moved == pictures + 4 * 6 * 9 * 4
    assert by_name["conv"].flop == {"f32": 2 * 64 * 6 * 9 * 4}
    assert by_name["twice"].moved == 2 * 4 * 16 and by_name["twice"].flop == {}
    assert by_name["sliced"].moved == 2 * 64 + 4  # of the table a row
    assert by_name["updated"].moved == 2 * 64 + 4  # and in its place
    merged = by_name["gemm_fusion"]
    assert merged.moved == 2 * (64 * 8 + 8 * 32 + 2 * 64 * 32) and merged.flop == {"bf16": 2 * 8 * 64 * 32}
    assert merged.seconds(1e12, {"bf16": 1e12}) == merged.flop["bf16"] / 1e12
    assert merged.seconds(1e9, {"bf16": 1e12}) == merged.moved / 1e9
    assert max(map(logits, found)) == 4 * 2 * 4 * 256 * 77


def test_a_program_of_this_machine_is_counted():
    """The same texts come from any of XLA's compilers."""

    def network(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w), x)

    lowered = jax.jit(network).lower(*(jax.ShapeDtypeStruct((64, 64), jnp.float32) for _ in "xw"))
    row = measure("none", "a loop", "h100", lowered, 1)
    assert row.tflop == pytest.approx(3 * 2 * 64**3 / 1e12)
    assert row.moved_gb >= 3 * 3 * 4 * 64 * 64 / 1e9
    assert (row.attentions, row.convolutions, row.collectives) == (0, 0, 0)
    assert len(str(row).split("|")) == 18


def test_a_target_says_what_tells_gpus_apart():
    h100, h200 = (gpus.GPUS[name].target.splitlines() for name in ("h100", "h200"))
    assert [line.split(":")[0].strip() for one, line in zip(h100, h200, strict=True) if one != line] == [
        *("memory_bandwidth", "device_memory_size", "device_description_str")
    ]


class Case(NamedTuple):
    """A model on one H100, 4 images, and what the AutoLoRA step may need there."""

    program: str
    model: str
    peak_gb: float
    temporaries_gb: float  # a hoisted merge would be a second model among them
    attentions: int  # of cuDNN's: 70 of SDXL's UNet, 24 of SD3 Medium, in both bodies of the loop
    convolutions: int


CASES = (
    Case("step", "sdxl", 9, 3, 140, 102),  # seen: 7.9, 2.4
    Case("kept", "sdxl", 14.5, 3.5, 140, 102),  # seen: 13.3, 3.0
    Case("step", "sd3-medium", 7, 2, 48, 2),  # seen: 6.0, 1.5
)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}, {case.program}")
def test_full_size_autolora_step_on_an_h100(case: Case):
    if said := gpus.missing():
        pytest.skip(said)
    [(name, lowered, images)] = PROGRAMS[case.program](case.model, gpus.mesh("h100"), 4, 1024, 64)
    step = measure(case.model, name, "h100", lowered, images)
    assert step.peak_gb < case.peak_gb
    assert step.temporaries_gb < case.temporaries_gb
    assert (step.attentions, step.convolutions) == (case.attentions, case.convolutions)
    assert step.logits_mb < 150  # of prompts, 77 tokens
    assert step.collectives == 0
    assert (step.merges_gb > 0) == (case.program == "step")
