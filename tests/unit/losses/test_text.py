import math

import torch

from ds_stage2ab.losses.text import token_cross_entropy, weighted_sample_mean


def test_cross_entropy_of_known_logits():
    # softmax of (ln 3, 0) is (3/4, 1/4): -ln(3/4) = ln(4/3), -ln(1/4) = ln 4.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    torch.testing.assert_close(
        token_cross_entropy(logits, torch.tensor([0, 1])), torch.tensor([math.log(4 / 3), math.log(4)])
    )


def test_each_sample_has_its_own_denominator():
    # sample 0: (2*1 + 4*3) / (1 + 3) = 3.5; sample 1: 5*2 / 2 = 5; sample 2 has no position: 0.
    mean = weighted_sample_mean(
        torch.tensor([2.0, 4.0, 5.0]), torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]), 3
    )
    torch.testing.assert_close(mean, torch.tensor([3.5, 5.0, 0.0]))


def test_weights_that_add_up_to_less_than_one_are_divided_out():
    # (2 * 0.1 + 4 * 0.3) / 0.4 = 3.5
    mean = weighted_sample_mean(torch.tensor([2.0, 4.0]), torch.tensor([0.1, 0.3]), torch.tensor([0, 0]), 1)
    torch.testing.assert_close(mean, torch.tensor([3.5]))


def test_sample_without_weight_has_gradient_zero_not_nan():
    values = torch.tensor([2.0], requires_grad=True)
    weighted_sample_mean(values, torch.tensor([0.0]), torch.tensor([0]), 1).sum().backward()
    assert values.grad.tolist() == [0.0]


def test_nothing_supervised_still_reaches_the_logits():
    logits = torch.zeros(0, 7, requires_grad=True)
    ce = token_cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    weighted_sample_mean(ce, torch.zeros(0), torch.zeros(0, dtype=torch.long), 2).sum().backward()
    assert logits.grad.shape == (0, 7)
