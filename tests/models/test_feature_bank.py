from pathlib import Path

import pytest
import torch

from semiseg.models.feature_bank import FeatureBank


def step(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return three rows of two numbers, and their labels."""
    return torch.full((3, 2), float(number)), torch.full((3,), number)


def test_it_holds_the_newest_steps_and_says_what_is_filled() -> None:
    bank = FeatureBank(steps=2, dim=2)
    assert [len(each) for each in bank.rows()] == [0, 0, 0]
    for number, held in ((1, [1]), (2, [2, 1]), (3, [3, 2]), (4, [4, 3])):
        bank.add(*step(number))
        features, labels, valid = bank.rows()
        assert features.shape == (6, 2)
        assert labels[valid].tolist() == [each for each in held for _ in range(3)]
        assert features[valid, 0].tolist() == labels[valid].tolist()


def test_a_saved_bank_goes_on_where_it_was(tmp_path: Path) -> None:
    bank = FeatureBank(steps=3, dim=2)
    for number in (1, 2):
        bank.add(*step(number))
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    for restored in (FeatureBank(3, 2), FeatureBank(3, 2)):
        restored.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
        for each in (bank, restored):
            each.add(*step(3))
        assert all(torch.equal(one, other) for one, other in zip(bank.rows(), restored.rows(), strict=True))
        bank.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))


def test_an_empty_bank_is_saved_and_loaded_too() -> None:
    bank = FeatureBank(steps=2, dim=2)
    bank.add(*step(1))
    bank.load_state_dict(FeatureBank(steps=2, dim=2).state_dict())
    assert [len(each) for each in bank.rows()] == [0, 0, 0]


def test_another_number_of_rows_is_refused() -> None:
    bank = FeatureBank(steps=2, dim=2)
    bank.add(*step(1))
    with pytest.raises(ValueError, match="4 rows, the steps before had 3"):
        bank.add(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))


def test_held_features_carry_no_gradient() -> None:
    bank = FeatureBank(steps=1, dim=2)
    bank.add(torch.ones(3, 2, requires_grad=True), torch.zeros(3, dtype=torch.int64))
    assert not bank.rows()[0].requires_grad
