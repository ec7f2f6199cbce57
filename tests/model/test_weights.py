from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import medcoss
from medcoss.contracts import UsageError
from medcoss.model.architecture import Architecture
from medcoss.model.import_reference import import_reference
from medcoss.model.mae import MaskedModel
from medcoss.model.weights import fingerprint, load_encoder, load_into, load_model, read_header, save_model


class Payload:
    """Would create a file if it were unpickled without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_a_model_is_saved_and_loaded_bit_by_bit(model: MaskedModel, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, {"stage": "one", "steps": 3})
    loaded = load_model(path)
    assert loaded.architecture == model.architecture
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    encoder = medcoss.load(path)
    for kind, batch in inputs.items():
        assert torch.equal(encoder(batch, kind=kind), model.encoder(batch, kind))
        assert torch.equal(encoder.embed(batch, kind), model.encoder.embed(batch, kind))
    assert read_header(path).provenance == {"stage": "one", "steps": 3}
    assert all(parameter.requires_grad for parameter in load_encoder(path).parameters())


def test_equal_models_give_equal_bytes_and_no_leftovers(model: MaskedModel, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_model(one, model, {"b": 1, "a": 2})
    save_model(two, model, {"a": 2, "b": 1})
    assert one.read_bytes() == two.read_bytes()
    assert fingerprint(one) == fingerprint(two)
    save_model(two, model, {"a": 3})
    assert fingerprint(one) != fingerprint(two)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]


def test_a_stage_takes_over_encoder_and_tokenizers_only(
    model: MaskedModel, architecture: Architecture, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, {})
    fresh = MaskedModel(architecture)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    report = load_into(fresh, path)
    for name, tensor in fresh.state_dict().items():
        source = model.state_dict() if name.startswith("encoder.") else before
        assert torch.equal(tensor, source[name]), name
    assert report.loaded == sum(name.startswith("encoder.") for name in before)
    assert (report.fresh_kinds, report.unused_kinds) == ((), ())


def test_kinds_that_come_and_go_are_reported(architecture: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, MaskedModel(replace(architecture, volume_shape=None)), {})
    target = MaskedModel(replace(architecture, text_length=None, vocabulary=None))
    report = load_into(target, path)
    assert (report.fresh_kinds, report.unused_kinds) == (("volume",), ("sequence",))


def test_weights_of_another_shape_are_refused(model: MaskedModel, architecture: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, {})
    for change, message in (
        ({"vocabulary": 60}, r"sequence.tokens.weight is \(50, 24\), this model needs \(60, 24\)"),
        ({"depth": 3}, "2 encoder blocks, this model has 3"),
    ):
        with pytest.raises(UsageError, match=message):
            load_into(MaskedModel(replace(architecture, **change)), path)


def test_files_that_are_no_models_are_refused_in_one_line(tmp_path: Path) -> None:
    missing, other, pickled = tmp_path / "missing", tmp_path / "other.safetensors", tmp_path / "model.pt"
    save_file({"x": torch.zeros(2)}, other)
    mark = tmp_path / "executed"
    torch.save({"model": {"cls_token": Payload(mark)}}, pickled)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps({"model": Payload(mark)}, protocol=2))
    for path, message in ((missing, "no such file"), (other, "no medcoss header"), (pickled, "import-weights")):
        with pytest.raises(UsageError, match=message) as caught:
            load_encoder(path)
        assert "\n" not in str(caught.value)
    for path, message in (
        (pickled, "need more than tensors"),
        (plain, "need more than tensors"),
        (missing, "existing file"),
        (other, "no"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            import_reference(path)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_importing_the_package_imports_no_torch() -> None:
    checked = "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    code = f"import medcoss, sys; medcoss.Kind; {checked}; print(medcoss.__all__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ShardSet" in result.stdout and "load" in result.stdout
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = medcoss.absent  # type: ignore[attr-defined]
