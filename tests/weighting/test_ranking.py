import torch

from swn_d2.weighting.ranking import rank_within


def test_ranks_are_positions_within_the_group():
    group = torch.tensor([7, 2, 7, 2, 7])
    key = torch.tensor([0.3, 5.0, 0.1, -1.0, 0.2])
    assert rank_within(group, key).tolist() == [2, 1, 0, 0, 1]


def test_the_first_key_counts_most_and_equal_samples_keep_their_order():
    group = torch.zeros(5, dtype=torch.long)
    first = torch.tensor([1, 0, 1, 0, 1])
    second = torch.tensor([0.5, 0.9, 0.1, 0.9, 0.5])
    assert rank_within(group, first, second).tolist() == [3, 0, 2, 1, 4]


def test_nobody_has_no_rank():
    assert rank_within(torch.zeros(0, dtype=torch.long), torch.zeros(0)).shape == (0,)
