from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mi_prun.analysis.streamed_model import StreamedModel
from mi_prun.errors import UserError
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.closed_form import refit
from mi_prun.recovery.heal import heal_folder
from mi_prun.recovery.judge import Judge
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.recovery.streamed_fit import fit_streamed
from mi_prun.text.calibration import Windows


@pytest.mark.parametrize(
    ("model_type", "dropped", "fields"),
    [
        ("llama", (2, 4, 5), {"tie_word_embeddings": False}),
        ("llama", (1,), {"tie_word_embeddings": True}),
        ("gpt2", (2, 3), {}),
    ],
)
def test_block_by_block_it_is_the_fit_of_the_whole_model(tiny, tokens, model_type, dropped, fields):
    folder = open_model(tiny(model_type, **fields))
    weights = SharedWeights(load_on(folder, "cpu"), dropped, folder.family.block_prefix)
    kind = Windows((tokens[:3] + 1) % 97, "some")
    judge = Judge(weights, [kind], 2)
    before = judge.measure()
    fits = refit(weights, tokens, ridge=0.1, batch_windows=2)
    streamed = fit_streamed(
        StreamedModel(folder, device=torch.device("cpu"), dtype=torch.float32), dropped, tokens, [kind], ridge=0.1,
        batch_windows=2,
    )  # fmt: skip
    assert [fit.name for fit in streamed.fits] == [
        fit.name if fit.name in folder.tensors else fit.name.removeprefix("transformer.") for fit in fits
    ]
    for ours, theirs in zip(streamed.fits, fits, strict=True):
        assert (ours.error_before, ours.error_after) == pytest.approx(
            (theirs.error_before, theirs.error_after), rel=1e-4
        )
    for tensor, fit in zip(streamed.tensors.values(), fits, strict=True):
        assert torch.allclose(tensor, weights.current(fit.name), atol=1e-5)
    for ours, theirs in ((streamed.before, before), (streamed.after, judge.measure())):
        assert (ours[0].ce_nats, ours[0].kl_nats) == pytest.approx((theirs[0].ce_nats, theirs[0].kl_nats), rel=1e-4)


def test_a_folder_healed_block_by_block_is_that_of_the_whole_model(pruned_reference, tmp_path, heal_settings):
    settings = replace(heal_settings, train="none", tokens=None, fit_tokens=1_024)
    whole = heal_folder(pruned_reference, tmp_path / "whole", settings).healing
    streamed = heal_folder(pruned_reference, tmp_path / "streamed", replace(settings, stream_blocks=True)).healing
    assert (streamed.method, streamed.fit_tokens, streamed.tasks) == ("fit", 1_024, ())
    for ours, theirs in zip(streamed.quality, whole.quality, strict=True):
        assert ours.text == theirs.text
        assert ours.healed_perplexity == pytest.approx(theirs.healed_perplexity, rel=1e-3)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("streamed", "whole")]
    for name, tensor in files[0].items():
        # Block by block the second run is fitted on the first matrix as it is written, in bfloat16.
        assert (tensor.float() - files[1][name].float()).norm() <= 0.02 * tensor.float().norm(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 256}, "--stream-blocks goes with --fit"),
        ({"train": "none", "tokens": None, "sources": ("self",)}, "--stream-blocks needs --calibration TEXT"),
    ],
)
def test_what_needs_the_whole_model_is_refused(pruned_reference, tmp_path, heal_settings, change, message):
    with pytest.raises(UserError, match=message):
        heal_folder(pruned_reference, tmp_path / "healed", replace(heal_settings, stream_blocks=True, **change))


def test_a_run_from_the_first_block_on(tiny, tokens):
    streamed = StreamedModel(open_model(tiny("llama")), device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(UserError, match="the only run begins at block 0"):
        fit_streamed(streamed, (0, 1), tokens, [], ridge=0.1, batch_windows=2)
