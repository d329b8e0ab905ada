"""Reading a compiled program: on a small text in XLA's spelling, whose counts are known by hand."""

# ruff: noqa: E501 lines of XLA are as long as they are

import pytest

from vvlm_jax.compile import hlo

TEXT = """
HloModule jit_step, is_scheduled=true

%add.1 (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %sum.1 = f32[]{:T(128)} add(%a.1, %b.1)
}

%inner_cond.2 (p.3: (u32[], bf16[8,128])) -> pred[] {
  %limit.1 = u32[]{:T(128)} constant(8), metadata={op_name="jit(step)/while"}
  %p.3 = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.3 = u32[]{:T(128)} get-tuple-element(%p.3), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.3, %limit.1), direction=LT
}

%inner_body.2 (p.4: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %p.4 = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x.4 = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.4), index=1
  %collective-permute-start.1 = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x.4), source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = bf16[8,128]{1,0:T(8,128)(2,1)} collective-permute-done(%collective-permute-start.1)
  ROOT %t.4 = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%x.4, %collective-permute-done.1)
}

%cond.1 (p.1: (s32[], bf16[8,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %layers.1 = s32[]{:T(128)} constant(26)
  ROOT %lt.2 = pred[]{:T(512)} compare(%i.1, %layers.1), direction=LT
}

%body.1 (p.2: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p.2 = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %x.2 = bf16[8,128]{1,0} get-tuple-element(%p.2), index=1
  %gathered.2 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%x.2), dimensions={0}, channel_id=1
  %kernel.2 = bf16[32,128]{1,0} custom-call(%gathered.2), custom_call_target="tpu_custom_call", operand_layout_constraints={}
  %one.2 = u32[] constant(1)
  %start.2 = (u32[], bf16[8,128]{1,0}) tuple(%one.2, %x.2)
  %while.2 = (u32[], bf16[8,128]{1,0}) while(%start.2), condition=%inner_cond.2, body=%inner_body.2, metadata={op_name="a, b"}
  ROOT %t.2 = (s32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%x.2, %x.2)
}

%all-reduce-scatter.1 (p.5: f32[64]) -> f32[16] {
  %p.5 = f32[64]{0} parameter(0)
  %all-reduce.5 = f32[64]{0} all-reduce(%p.5), to_apply=%add.1
  ROOT %slice.5 = f32[16]{0} slice(%all-reduce.5), slice={[0:16]}
}

ENTRY %main.9 (p.9: bf16[8,128]) -> bf16[8,128] {
  %p.9 = bf16[8,128]{1,0} parameter(0)
  %zero.9 = s32[]{:T(128)} constant(0)
  %start.9 = (s32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%zero.9, %p.9)
  %while.9 = (s32[]{:T(128)}, bf16[8,128]{1,0}) while(%start.9), condition=%cond.1, body=%body.1
  %loss.9 = f32[64]{0} convert(%p.9)
  %small.9 = f32[16]{0} fusion(%loss.9), kind=kCustom, calls=%all-reduce-scatter.1
  %two.9 = (f32[64]{0}, f32[4]{0}) all-reduce(%loss.9, %small.9), to_apply=%add.1
  %scores.9 = f32[2,729,768]{2,1,0} fusion(%p.9), kind=kLoop, calls=%add.1
  %weights.9 = bf16[768,768]{1,0} fusion(%p.9), kind=kLoop, calls=%add.1
  ROOT %out.9 = bf16[8,128]{1,0} get-tuple-element(%while.9), index=1
}
"""


def test_collectives_count_as_often_as_the_loops_around_them_run():
    found = hlo.collectives(TEXT)
    assert found == {
        "all-gather": hlo.Collectives(26, 26 * 32 * 128 * 2),
        "all-reduce": hlo.Collectives(1, (64 + 16) * 4),
        "reduce-scatter": hlo.Collectives(1, 64 * 4),
        # The inner loop begins at 1 and ends before 8; a start gives back what it takes, too.
        "collective-permute": hlo.Collectives(26 * 7, 26 * 7 * (8 * 128 * 2 + 8)),
    }


@pytest.mark.light
def test_kernels_stand_once_and_scores_are_told_from_weights():
    assert hlo.kernels(TEXT) == 1
    assert hlo.squares(TEXT, 729) == {"f32[2,729,768]"}
    assert hlo.squares(TEXT, 700) == set()


def test_bytes_of_a_type_leave_its_layout_out():
    text = "(bf16[1,4096]{1,0:T(2,128)(2,1)}, f32[]{:T(128)}, pred[3]{0}, f8e4m3fn[2,2]{1,0})"
    assert hlo.array_bytes(text) == [8192, 4, 3, 4]
