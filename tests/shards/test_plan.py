"""Shards are decided by the clips themselves: a change stays where it happens."""

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm.core.errors import ShardError
from fvlm.shards.plan import Member, plan_shards

KEYS = st.sets(st.text("abcdefgh0123456789", min_size=1, max_size=8), max_size=80)


def members(keys: set[str]) -> list[Member]:
    return [Member(key, f"content of {key}") for key in keys]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(KEYS, st.text("abcdefgh0123456789", min_size=1, max_size=8), st.integers(1, 12))
def test_one_more_clip_makes_at_most_three_new_shards(keys: set[str], key: str, size: int) -> None:
    without = plan_shards(members(keys - {key}), size)
    with_it = plan_shards(members(keys | {key}), size)
    assert len([shard for shard in with_it if shard not in without]) <= 3
    assert len([shard for shard in without if shard not in with_it]) <= 3


@settings(max_examples=200, deadline=None, derandomize=True)
@given(KEYS, st.integers(1, 12), st.randoms())
def test_every_clip_once_sorted_whatever_the_order(
    keys: set[str], size: int, rng: random.Random
) -> None:
    clips = members(keys)
    rng.shuffle(clips)
    plan = plan_shards(clips, size)
    assert [member.key for shard in plan for member in shard] == sorted(keys)
    assert plan == plan_shards(members(keys), size)
    assert all(plan)


@pytest.mark.parametrize("size", [1, 2, 8, 31])
def test_mean_and_bounds(size: int) -> None:
    lengths = [len(shard) for shard in plan_shards(members({f"{n}" for n in range(20_000)}), size)]
    assert mean(lengths) == pytest.approx(size, rel=0.03)
    assert min(lengths) >= (size + 1) // 2
    assert max(lengths) <= max(4, 4 * size)


def test_content_does_not_move_boundaries() -> None:
    keys = [f"{n}" for n in range(100)]
    plans = [plan_shards([Member(key, c) for key in keys], 8) for c in ("old", "new")]
    assert [len(shard) for shard in plans[0]] == [len(shard) for shard in plans[1]]


def test_repeated_keys_and_sizes_below_one_are_refused() -> None:
    with pytest.raises(ShardError, match="two clips have the key a"):
        plan_shards([Member("a", "1"), Member("a", "2")], 8)
    with pytest.raises(ShardError, match="at least 1, got 0"):
        plan_shards([], 0)
