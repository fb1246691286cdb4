"""MoCo's step and its queue."""

import math

import numpy as np
import pytest
import torch

from semiseg.base import distributed
from semiseg.pretraining.common import Queue, restored, shuffled
from tests.pretraining.recipes import learner, plain, unit, views


def test_a_step_by_loops_and_the_queue_takes_the_keys_after_it() -> None:
    method, batch = plain("moco", queue=5), views()
    queue = method.queue.keys.double().numpy()
    queries = [unit(row) for row in method.query(batch["image1"]).flatten(1)]
    keys = [unit(row) for row in method.key(batch["image2"]).flatten(1)]
    costs = []
    for query, key in zip(queries, keys, strict=True):
        scores = [math.exp(float(query @ other) / 0.2) for other in (key, *queue)]
        costs.append(-math.log(scores[0] / sum(scores)))
    loss, _ = method.training_step(batch, 0)
    assert float(loss.detach()) == pytest.approx(np.mean(costs), rel=1e-4)
    expected = np.stack([*keys, queue[0]])
    assert method.queue.keys.numpy() == pytest.approx(expected, abs=1e-5)


def test_a_queue_holds_the_newest_keys_first_and_of_norm_one() -> None:
    queue = Queue(3, 2)
    assert queue.keys.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    queue.add(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    queue.add(torch.tensor([[-5.0, 0.0]]))
    assert queue.keys.tolist() == [[-1, 0], [1, 0], [0, 1]]


def test_a_batch_comes_back_in_its_order() -> None:
    images = torch.arange(12.0)[:, None, None, None].expand(-1, 3, 2, 2)
    mixed, order = shuffled(images)
    assert mixed[:, 0, 0, 0].tolist() != images[:, 0, 0, 0].tolist()
    assert sorted(mixed[:, 0, 0, 0].tolist()) == images[:, 0, 0, 0].tolist()
    assert torch.equal(restored(mixed, order), images)


def test_keys_are_normalised_among_other_images_than_their_queries() -> None:
    method, batch = learner("moco"), views()
    seen = []
    method.key.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    torch.manual_seed(3)
    method.training_step(batch, 0)
    assert not torch.equal(seen[0], batch["image2"])
    assert distributed.size() == 1
