from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from mi_prun.checkpoint.inspection import describe, read_manifest, verify
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.quality.quality import compare_models
from mi_prun.recovery import heal
from mi_prun.recovery.adapter import read_adapter
from mi_prun.recovery.heal import check_healable, file_names, heal_folder
from mi_prun.recovery.healing_text import load_healing_text
from mi_prun.recovery.training_state import state_path
from mi_prun.text.text_source import text_digest
from mi_prun.text.weighted_source import parse_sources


@pytest.fixture(scope="module")
def brief_settings(heal_settings):
    """For a healing that is not to reach its end."""
    return replace(heal_settings, fit=False, gate_tokens=128, validation_tokens=64)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, pruned_reference, more_settings):
    out = tmp_path_factory.mktemp("fitted") / "healed"
    return heal_folder(pruned_reference, out, replace(more_settings, train="none", tokens=None)), out


def test_closed_form_alone_is_an_ordinary_folder_that_is_nearer_to_dense(
    fitted, pruned_reference, reference, more_settings, load
):
    manifest, out = fitted
    verify(out)
    pruned, healed = open_model(pruned_reference).tensors, open_model(out).tensors
    assert pruned.keys() == healed.keys()
    assert (manifest.healing.method, manifest.healing.fit_tokens, manifest.healing.tokens) == ("fit", 2_048, 0)
    assert manifest.healing.text_digests == tuple(
        text_digest(source.name) for source in parse_sources(more_settings.sources)
    )
    assert {kind.window_tokens for kind in manifest.healing.quality} == {32}
    kinds = [kind.text for kind in manifest.healing.quality]
    assert kinds == ["manual.txt, held-out part", "harbour.txt, held-out part"]
    assert all(kind.healed_perplexity < kind.pruned_perplexity for kind in manifest.healing.quality)

    # Measured again, from the folder, as stock transformers reads it.
    text = load_healing_text(
        parse_sources(more_settings.sources), tokenizer(reference), window_tokens=32, tokens=2_048,
        validation_tokens=more_settings.validation_tokens, gate_tokens=more_settings.gate_tokens, seed=0, model=None,
    )  # fmt: skip
    dense_ce, ce, kl = compare_models(load(reference), load(out), text.gate[0].tokens)
    said = manifest.healing.quality[0]
    assert math.exp(ce) == pytest.approx(said.healed_perplexity, rel=1e-4)
    assert math.exp(dense_ce) == pytest.approx(said.dense_perplexity, rel=1e-4)
    assert kl == pytest.approx(said.healed_kl_nats, rel=1e-3)


def tokenizer(folder):

    return open_model(folder).tokenizer


def test_only_what_was_refitted_differs_from_the_pruned_folder(fitted, pruned_reference):
    _, out = fitted
    pruned, healed = (folder_tensors(folder) for folder in (pruned_reference, out))
    changed = {name for name in pruned if not torch.equal(pruned[name], healed[name])}
    # Blocks 3 and 7 of the dense model stand before the dropped runs 4..5 and 8; in the pruned one they are 3 and 5.
    assert changed == {"model.layers.3.mlp.down_proj.weight", "model.layers.5.mlp.down_proj.weight"}


def folder_tensors(folder):
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_card_and_inspect_say_how_it_was_healed(fitted):
    _, out = fitted
    card = (out / "README.md").read_text()
    assert "nothing was retrained" not in card
    assert "the matrix in front of each run of them was refitted to what the dense model has behind the run" in card
    (asked,) = fitted[0].healing.tasks
    answers = (asked.items, asked.dense_right, asked.pruned_right, asked.healed_right, asked.flips)
    assert f"| {asked.task} | {' | '.join(map(str, answers))} |" in card
    assert "## Healing" in card
    assert "manual.txt, held-out part" in card
    assert f"healed       fit; {fitted[0].healing.fit_tokens:,} tokens of manual.txt (3), harbour.txt (1)" in describe(
        out
    )


def test_a_healed_folder_is_not_healed_again(fitted, tmp_path, heal_settings):
    _, out = fitted
    with pytest.raises(UserError, match=r"is healed already .fit"):
        heal_folder(out, tmp_path / "again", heal_settings)


def test_manifests_without_healing_are_read(pruned_reference):
    written = json.loads((pruned_reference / "mi_prun.json").read_text())
    del written["healing"]
    assert Manifest.parse(json.dumps(written), origin="older").healing is None


@pytest.mark.parametrize(("train", "rate"), [("lora", 1e-3), pytest.param("all", 1e-4, marks=pytest.mark.long)])
def test_training_beats_the_closed_form(fitted, pruned_reference, tmp_path, more_settings, train, rate):
    settings = replace(more_settings, train=train, tokens=2_048, learning_rate=rate)
    healing = heal_folder(pruned_reference, tmp_path / "healed", settings).healing
    assert (healing.method, healing.tokens) == (f"fit + {train}", 2_048)
    kl = [sum(kind.healed_kl_nats for kind in each.quality) for each in (healing, fitted[0].healing)]
    assert kl[0] < kl[1]
    verify(tmp_path / "healed")
    assert not state_path(tmp_path / "healed").exists()


def test_what_does_not_help_is_not_written(pruned_reference, tmp_path, brief_settings):
    harmful = replace(brief_settings, learning_rate=0.9, tokens=256)
    with pytest.raises(UserError, match=r"nothing was healed; take a lower|the loss is NaN or Inf"):
        heal_folder(pruned_reference, tmp_path / "healed", harmful)
    assert not (tmp_path / "healed").exists()


def test_a_time_that_is_over_before_the_first_step(pruned_reference, tmp_path, heal_settings, monkeypatch, capsys):
    from mi_prun.recovery.training import Training

    monkeypatch.setattr(Training, "share_done", 1.0)
    settings = replace(heal_settings, tokens=None, minutes=0.5)
    with pytest.raises(UserError, match=r"--minutes 0.5 were over before the first step of the training: nothing was"):
        heal_folder(pruned_reference, tmp_path / "healed", replace(settings, fit=False))
    assert not any(tmp_path.iterdir())
    healing = heal_folder(pruned_reference, tmp_path / "healed", settings).healing
    assert (healing.method, healing.tokens) == ("fit", 0)
    assert "what is written is the closed form's" in capsys.readouterr().err
    assert not healing.settings.keys() & {"rank", "learning_rate", "minutes"}


def test_a_training_that_goes_wrong_is_stopped_and_the_closed_form_is_written(
    pruned_reference, tmp_path, heal_settings, monkeypatch, capsys
):
    from mi_prun.recovery.training import Training

    kl = iter([0.2, 0.3])
    monkeypatch.setattr(Training, "_judged", lambda training: (next(kl), 1.0))
    adapter = tmp_path / "adapter"
    healing = heal_folder(pruned_reference, tmp_path / "healed", heal_settings, adapter=adapter).healing
    said = capsys.readouterr().err
    assert "--train lora ended after 512 tokens: KL to the dense model on validation text was 0.2 nats" in said
    assert "what is written is the closed form's; take a lower --learning-rate than 0.001" in said
    assert (healing.method, healing.tokens, healing.fit_tokens) == ("fit", 0, 1_024)
    assert "rank" not in healing.settings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "healed"]
    learned = read_adapter(adapter, read_manifest(tmp_path / "healed").plan)
    assert learned.names == {"model.layers.3.mlp.down_proj.weight", "model.layers.7.mlp.down_proj.weight"}


def test_the_closed_form_leaves_the_state_of_a_training_alone(pruned_reference, tmp_path, heal_settings):
    from mi_prun.recovery.training_state import Progress, save_state

    path = state_path(tmp_path / "healed")
    save_state(path, "another", Progress(step=3), {})
    settings = replace(heal_settings, train="none", tokens=None)
    with pytest.raises(UserError, match="is the state of an interrupted healing with other settings"):
        heal_folder(pruned_reference, tmp_path / "healed", settings)
    with pytest.raises(UserError, match="no such file"):
        heal_folder(pruned_reference, tmp_path / "healed", replace(settings, sources=("nowhere.txt",)), force=True)
    assert path.is_file()
    heal_folder(pruned_reference, tmp_path / "healed", settings, force=True)
    assert not path.exists()


def test_nan_in_the_loss_is_one_line(pruned_reference, tmp_path, brief_settings, monkeypatch):
    from mi_prun.recovery.distillation import Distillation

    monkeypatch.setattr(Distillation, "backward", lambda *args: math.nan)
    with pytest.raises(UserError, match="the loss is NaN or Inf at step 1"):
        heal_folder(pruned_reference, tmp_path / "healed", brief_settings)
    assert not (tmp_path / "healed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 10_000_000}, r"--tokens 10,000,000 takes 7,.* of manual.txt, which has"),
        ({"rank": 1_000}, "--rank 1000 is larger than a matrix"),
        ({"tokens": None}, "--tokens or --minutes"),
        ({"tokens": None, "minutes": -1}, "--minutes must be over 0"),
        ({"train": "half"}, "--train must be lora or all, got 'half'"),
        ({"train": "none", "fit": False}, "nothing would be healed"),
        ({"temperature": 0}, "--temperature must be over 0"),
        ({"ce_share": 2}, "--ce-share must be 0 to 1"),
        ({"learning_rate": 2.0}, "--learning-rate must be over 0"),
        ({"sources": ("a.txt=x",)}, "the weight must be a number over 0"),
        ({"sources": ("a.txt", "a.txt=2")}, "names a text twice"),
        ({"sources": ("nowhere.txt",)}, "no such file"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(pruned_reference, tmp_path, heal_settings, change, message):
    with pytest.raises(UserError, match=message):
        heal_folder(pruned_reference, tmp_path / "healed", replace(heal_settings, **change))
    assert not any(tmp_path.glob("healed*"))


def test_a_rank_that_does_not_fit_is_refused_before_the_long_work(
    pruned_reference, tmp_path, heal_settings, monkeypatch
):
    monkeypatch.setattr(heal, "load_healing_text", lambda *args, **kwargs: pytest.fail("text was read"))
    with pytest.raises(UserError, match="--rank 1000 is larger than a matrix"):
        heal_folder(pruned_reference, tmp_path / "healed", replace(heal_settings, rank=1_000))


@pytest.mark.parametrize("saved", [True, False])
def test_an_interrupt_says_whether_a_state_is_there(pruned_reference, tmp_path, brief_settings, monkeypatch, saved):
    from mi_prun.recovery.training import Training

    def interrupted(training, advance):
        if saved:
            training.save()
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        heal_folder(pruned_reference, tmp_path / "healed", brief_settings)
    (said,) = raised.value.__notes__
    assert ("goes on from the state saved last" in said) is saved
    assert ("the same command begins anew" in said) is not saved


def test_dense_model_that_moved_or_changed(prune, tiny, tmp_path, heal_settings):
    dense = tiny("llama")
    pruned = prune(dense, tmp_path / "pruned", (2,))
    shutil.move(dense, tmp_path / "moved")
    with pytest.raises(UserError, match="say where it is with --model"):
        heal_folder(pruned, tmp_path / "healed", heal_settings)
    other = tiny("llama", hidden_size=64)
    with pytest.raises(UserError, match="is another model"):
        heal_folder(pruned, tmp_path / "healed", heal_settings, model=str(other))
    with pytest.raises(UserError, match="no usable tokenizer"):  # it is the right one
        heal_folder(pruned, tmp_path / "healed", heal_settings, model=str(tmp_path / "moved"))


def test_a_folder_that_is_not_pruned(tmp_path, reference, heal_settings):
    with pytest.raises(UserError, match="is not a pruned checkpoint"):
        heal_folder(reference, tmp_path / "healed", heal_settings)


def test_a_full_disk_is_one_line_and_leaves_nothing(pruned_reference, tmp_path, brief_settings, monkeypatch):
    import errno

    from mi_prun.recovery import training_state

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training_state, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        heal_folder(pruned_reference, tmp_path / "healed", brief_settings)
    assert not any(tmp_path.iterdir())


def test_an_adapter_that_cannot_be_written_leaves_no_folder(pruned_reference, tmp_path, heal_settings, monkeypatch):
    def full(*args):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(heal, "write_adapter", full)
    settings = replace(heal_settings, train="none", tokens=None)
    with pytest.raises(UserError, match="No space left on device"):
        heal_folder(pruned_reference, tmp_path / "healed", settings, adapter=tmp_path / "adapter")
    assert not any(tmp_path.iterdir())


def test_force_goes_on_from_a_state_of_the_same_healing_alone(tmp_path):
    from mi_prun.recovery.training_state import Progress, save_state

    path = tmp_path / "state"
    save_state(path, "same", Progress(step=3), {})
    assert heal._state_of(path, "same", force=True).progress.step == 3
    assert heal._state_of(path, "another", force=True) is None
    with pytest.raises(UserError, match="with other settings"):
        heal._state_of(path, "another", force=False)


def test_text_for_the_closed_form_is_asked_for_beside_few_tokens_to_train_on(heal_settings):
    few = replace(heal_settings, tokens=512, fit_tokens=1_024)
    assert heal._text_tokens(few) == 1_024
    assert heal._text_tokens(replace(few, fit=False)) == 512
    assert heal._text_tokens(replace(few, tokens=4_096)) == 4_096
    assert heal._text_tokens(replace(few, tokens=None, minutes=1.0)) is None
    assert heal._text_tokens(replace(few, train="none", tokens=None)) == 1_024


def test_a_plan_with_nothing_to_heal_is_refused_before_the_model_is_loaded(
    reference, pruned_reference, tmp_path, heal_settings, monkeypatch
):
    monkeypatch.setattr(heal, "load_block_model", lambda *args, **options: pytest.fail("the model was loaded"))
    plan = read_manifest(pruned_reference).plan
    none = plan.model_copy(update={"dropped": (), "kept": tuple(range(12))})
    with pytest.raises(UserError, match="the plan drops no block"):
        heal.heal(open_model(reference), none, tmp_path / "healed", heal_settings)
    first = plan.model_copy(update={"dropped": (0, 1), "kept": tuple(range(2, 12))})
    fit = replace(heal_settings, train="none", tokens=None)
    with pytest.raises(UserError, match="the only run begins at block 0"):
        heal.heal(open_model(reference), first, tmp_path / "healed", fit)


def test_a_disk_without_room_is_refused_before_the_model_is_loaded(
    pruned_reference, tmp_path, heal_settings, monkeypatch
):
    from mi_prun import files

    def loaded(*args, **options):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(heal, "load_block_model", loaded)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    with pytest.raises(UserError, match=r"output .*healed needs 0\.04 GB and .* has 0\.00 GB free"):
        heal_folder(pruned_reference, tmp_path / "healed", heal_settings)
    with pytest.raises(AssertionError):  # what was learned takes megabytes
        heal_folder(pruned_reference, tmp_path / "healed", heal_settings, virtual=True)
    assert not any(tmp_path.iterdir())


def test_memory_that_runs_out_is_one_line(pruned_reference, tmp_path, brief_settings, monkeypatch):
    from mi_prun.recovery.distillation import Distillation

    def out_of_memory(*args):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(Distillation, "backward", out_of_memory)
    with pytest.raises(
        UserError, match=r"out of memory while healing .* take --checkpoint-blocks, fewer --batch-tokens"
    ):
        heal_folder(pruned_reference, tmp_path / "healed", brief_settings)


def test_a_fit_to_one_narrow_text_is_caught_by_the_other_kind(pruned_reference, harbour, tmp_path, heal_settings):
    narrow = replace(heal_settings, sources=(str(harbour),), train="none", tokens=None, fit_tokens=1_024, ridge=1e-4)
    with pytest.raises(UserError, match=r"healing \(fit\) does not help: on self, held-out part the perplexity is"):
        heal_folder(pruned_reference, tmp_path / "healed", narrow)
    assert not any(tmp_path.iterdir())


def test_whole_blocks_are_trained_where_there_is_memory_for_it(pruned_reference, tmp_path, heal_settings, monkeypatch):
    monkeypatch.setattr(heal, "free_bytes", lambda device: 10**7)
    monkeypatch.setattr(heal, "load_healing_text", lambda *args, **kwargs: pytest.fail("text was read"))
    with pytest.raises(
        UserError, match=r"--train all: [45],\S+ parameters .* take 0\.\d+ GB more, .* 0\.01 GB are free: take"
    ):
        heal_folder(pruned_reference, tmp_path / "healed", replace(heal_settings, train="all"))


def test_a_quantised_model_is_healed_before_it_is_quantised(tiny):
    folder = tiny("llama")
    check_healable(open_model(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UserError, match="is quantised: heal first, then quantise"):
        check_healable(open_model(folder))


def test_experts_that_lie_otherwise_in_the_files_are_refused(tiny, shared):
    dense = open_model(tiny("qwen3_moe"))
    with pytest.raises(UserError, match="does not lie in its files as transformers holds it; healing a qwen3_moe"):
        file_names(shared((2,), "qwen3_moe"), dense, dense.family)
