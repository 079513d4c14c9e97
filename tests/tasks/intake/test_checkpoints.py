from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from schemas.errors import CheckpointError
from tasks.intake.checkpoints import read_checkpoint


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_both_formats_give_the_same_state(tmp_path: Path, model: nn.Module) -> None:
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "b.pt")
    for name in ("a.safetensors", "a.pt", "b.pt"):
        state = read_checkpoint(tmp_path / name, model)
        assert list(state) == list(model.state_dict())
        for key, value in model.state_dict().items():
            assert torch.equal(state[key], value)


def test_half_precision_is_widened_to_the_models_dtype(tmp_path: Path, model: nn.Module) -> None:
    torch.save({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "a.pt")
    state = read_checkpoint(tmp_path / "a.pt", model)
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.98])
def test_a_truncated_file_is_refused(
    tmp_path: Path, model: nn.Module, suffix: str, share: float
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=rf"a\.{suffix}"):
        read_checkpoint(path, model)


def test_names_shapes_and_values_must_fit(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "a.pt"
    state = OrderedDict(model.state_dict())
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    with pytest.raises(
        CheckpointError, match=r"lacks 0\.weight, .* and 1 more and has module\.0\.weight"
    ):
        read_checkpoint(path, model)
    torch.save({**state, "0.bias": torch.zeros(5)}, path)
    with pytest.raises(
        CheckpointError, match=r"0\.bias has shape \(5,\) but the model's is \(4,\)"
    ):
        read_checkpoint(path, model)
    torch.save({**state, "0.bias": torch.full((4,), float("nan"))}, path)
    with pytest.raises(CheckpointError, match=r"0\.bias holds NaN"):
        read_checkpoint(path, model)


def test_files_that_are_no_weights_are_refused(tmp_path: Path, model: nn.Module) -> None:
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="runs no code from a checkpoint"):
        read_checkpoint(tmp_path / "whole.pt", model)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list that is no state dict"):
        read_checkpoint(tmp_path / "list.pt", model)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "gone.pt", model)
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"ends in '\.h5'"):
        read_checkpoint(tmp_path / "a.h5", model)
