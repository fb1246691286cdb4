import pytest
import torch
from torch import Tensor, nn

from semiseg.models.pixel_heads import ClassAttention, PixelHead

CLASSES, DIM, ROWS = 4, 6, 41


def reference(attention: ClassAttention) -> list[nn.Sequential]:
    """Return the paper's modules, one for each class, with the same weights."""
    modules = []
    for c in range(CLASSES):
        module = nn.Sequential(
            nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.LeakyReLU(0.2), nn.Linear(DIM, 1), nn.Sigmoid()
        )
        with torch.no_grad():
            module[0].weight.copy_(attention.hidden_weight[c])
            module[0].bias.copy_(attention.hidden_bias[c])
            module[1].weight.copy_(attention.norm_weight[c])
            module[1].bias.copy_(attention.norm_bias[c])
            module[3].weight.copy_(attention.out_weight[c][None])
            module[3].bias.copy_(attention.out_bias[c][None])
        modules.append(module)
    return modules


def example(block: int) -> tuple[ClassAttention, Tensor, Tensor]:
    torch.manual_seed(block)
    attention = ClassAttention(CLASSES, DIM)
    attention.block = block
    with torch.no_grad():
        attention.norm_weight.uniform_(0.5, 1.5)
        attention.norm_bias.normal_()
    labels = torch.randint(CLASSES, (ROWS,)) // 2 * 2  # classes 1 and 3 are empty
    labels[::5] = 255
    labels[1] = -1
    return attention, torch.randn(ROWS, DIM), labels


@pytest.mark.parametrize("block", [1, 3, 8, 256])
def test_it_equals_one_module_a_class(block: int) -> None:
    attention, rows, labels = example(block)
    modules = reference(attention)
    upstream = torch.randn(ROWS)
    for training in (True, True, False):  # the statistics of two steps, then used
        attention.train(training)
        ours, theirs = attention(rows, labels), torch.zeros(ROWS)
        for c, module in enumerate(modules):
            module.train(training)
            if (labels == c).any():
                theirs[labels == c] = module(rows[labels == c])[:, 0]
        assert torch.allclose(ours, theirs, atol=1e-6)
        (ours * upstream).sum().backward()
        (theirs * upstream).sum().backward()
    for c, module in enumerate(modules):
        pairs = [
            (attention.hidden_weight, module[0].weight),
            (attention.hidden_bias, module[0].bias),
            (attention.norm_weight, module[1].weight),
            (attention.norm_bias, module[1].bias),
            (attention.out_weight, module[3].weight),
            (attention.out_bias, module[3].bias),
        ]
        for mine, its in pairs:
            expected = torch.zeros_like(its) if its.grad is None else its.grad
            assert torch.allclose(mine.grad[c], expected.view_as(mine[c]), atol=1e-5)
        assert torch.allclose(attention.running_mean[c], module[1].running_mean, atol=1e-6)
        assert torch.allclose(attention.running_var[c], module[1].running_var, atol=1e-6)


def test_rows_of_no_class_score_zero() -> None:
    attention, rows, labels = example(8)
    scores = attention(rows, labels)
    counted = (labels >= 0) & (labels < CLASSES)
    assert torch.equal(scores > 0, counted)
    assert (scores[counted] < 1).all()


def test_one_row_of_a_class_scores_without_moving_the_statistics() -> None:
    attention, rows, _ = example(8)
    before = attention.running_var.clone()
    score = attention(rows[:1], torch.tensor([2]))
    assert 0 < float(score) < 1
    assert torch.equal(attention.running_var, before)


def test_no_rows_at_all() -> None:
    attention, rows, labels = example(8)
    assert attention(rows[:0], labels[:0]).shape == (0,)


@pytest.mark.parametrize("training", [True, False])
def test_a_head_equals_its_sequence_on_the_valid_rows(training: bool) -> None:
    torch.manual_seed(0)
    head = PixelHead(5, DIM)
    norm = nn.BatchNorm1d(DIM)
    theirs = nn.Sequential(nn.Linear(5, DIM), norm, nn.ReLU(), nn.Linear(DIM, DIM))
    theirs[0].load_state_dict(head.hidden.state_dict())
    theirs[3].load_state_dict(head.out.state_dict())
    rows, valid = 2 + torch.randn(ROWS, 5), torch.rand(ROWS) < 0.5
    head.train(training)
    theirs.train(training)
    assert torch.allclose(head(rows, valid)[valid], theirs(rows[valid]), atol=1e-6)
    assert torch.allclose(head.norm.running_mean, norm.running_mean, atol=1e-6)
    assert torch.allclose(head.norm.running_var, norm.running_var, atol=1e-6)


def test_a_head_without_a_valid_row_is_finite_and_keeps_its_statistics() -> None:
    head = PixelHead(5, DIM)
    out = head(torch.randn(3, 5), torch.zeros(3, dtype=torch.bool))
    assert torch.isfinite(out).all()
    assert not head.norm.running_mean.any()
