"""What a full buffer keeps: every policy's promise, whatever the order and the seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from kdc_edge.replay import hexadecimal
from train.policies import POLICIES, _herded
from train.replay import HEADER, Buffer, Offer, caption_bytes, item_bytes, new_about

LATENT = (4, 2, 2)


def offer(task: str, count: int, captions: list[str] | None = None) -> Offer:
    rng = np.random.RandomState(sum(task.encode()))
    latents = torch.from_numpy(rng.randn(count, *LATENT).astype(np.float32))
    pictures = [bytes(rng.randint(0, 256, 32, np.uint8)).hex() for _ in range(count)]
    return Offer(task, latents, pictures, captions or [f"{task} {i}" for i in range(count)])


def empty(items: int, policy: str, seed: int = 0, captions: int = 400) -> Buffer:
    """Room for about so many items when all captions are kept."""
    about = new_about("v", "t", LATENT, (), store="int8", limit=10**6, policy=policy, seed=seed)
    names = 8 * caption_bytes("task")
    limit = HEADER + names + (captions * caption_bytes("task 000") + items * item_bytes(about))
    return Buffer.empty(replace(about, limit=limit))


def kept(buffer: Buffer) -> set[str]:
    return set(hexadecimal(buffer.contents.columns["pictures"]))


def test_a_reservoir_keeps_every_picture_with_the_same_chance() -> None:
    """Three tasks in sequence, 300 seeds; chi-square with the variance of draws without replacement."""
    offers = [offer(name, 20) for name in ("a", "b", "c")]
    pictures = [picture for each in offers for picture in each.pictures]
    counts, sizes = dict.fromkeys(pictures, 0), []
    for seed in range(300):
        buffer = empty(12, "reservoir", seed, captions=60)
        for each in offers:
            buffer = buffer.take(each)
        sizes.append(len(buffer))
        for picture in kept(buffer):
            counts[picture] += 1
    chance = np.mean(sizes) / 60
    assert 0.15 < chance < 0.9
    observed = np.array(list(counts.values()))
    spread = 300 * chance * (1 - chance)
    statistic = ((observed - 300 * chance) ** 2).sum() / spread
    assert stats.chi2.sf(statistic, 59) > 0.001
    assert stats.chi2.cdf(statistic, 59) > 0.001
    by_task = observed.reshape(3, 20).sum(1)
    assert np.abs(by_task - 20 * 300 * chance).max() < 4 * np.sqrt(20 * spread)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_choice_is_a_function_of_its_seed(policy: str) -> None:
    def chosen(seed: int) -> set[str]:
        return kept(empty(10, policy, seed, captions=60).take(offer("a", 30)).take(offer("b", 30)))

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2) or policy == "herding"


def test_two_reservoirs_merge_into_the_one_of_both() -> None:
    a, b = offer("a", 30), offer("b", 30)
    start = empty(10, "reservoir", captions=60)
    merged = start.take(a).merge(start.take(b))
    assert kept(merged) == kept(start.take(a).take(b)) and merged.about.tasks == ("a", "b")


def test_the_older_a_task_the_less_a_fresh_draw_leaves_of_it() -> None:
    left = np.zeros(4)
    for seed in range(30):
        buffer = empty(16, "random", seed, captions=160)
        for name in "abcd":
            buffer = buffer.take(offer(name, 40))
        left += np.bincount(buffer.contents.columns["task"], minlength=4)
    assert left[0] < left[1] < left[2] < left[3]


def test_each_caption_has_as_many_items_as_any_other() -> None:
    """Two captions of very different numbers of pictures."""
    many = offer("a", 60, ["rose"] * 54 + ["iris"] * 6)
    buffer = empty(8, "class-balanced", captions=0).take(many)
    counts = np.bincount(buffer.contents.columns["caption"])
    assert len(counts) == 2 and abs(int(counts[0]) - int(counts[1])) <= 1


def test_where_every_picture_has_a_caption_of_its_own_balance_is_chance() -> None:
    """As with emoji without skin tones: class-balanced is reservoir."""
    balanced, chance = empty(12, "class-balanced", captions=60), empty(12, "reservoir", captions=60)
    for name in "abc":
        balanced, chance = (buffer.take(offer(name, 20)) for buffer in (balanced, chance))
    assert kept(balanced) == kept(chance) and 0 < len(balanced) < 60


def test_herding_is_the_greedy_choice_and_shares_out_by_task() -> None:
    x = np.random.RandomState(0).randn(12, 5).astype(np.float32)
    order = np.argsort(_herded(x, 12), kind="stable")
    chosen: list[int] = []
    for _ in range(12):  # by definition
        rest = [i for i in range(12) if i not in chosen]
        chosen.append(min(rest, key=lambda i: np.linalg.norm(x.mean(0) - x[[*chosen, i]].mean(0))))
    assert order[:11].tolist() == chosen[:11]
    buffer = empty(12, "herding", captions=120)
    for name in "abc":
        buffer = buffer.take(offer(name, 40))
    counts = np.bincount(buffer.contents.columns["task"], minlength=3)
    assert counts.max() - counts.min() <= 1 and counts.min() >= 3
