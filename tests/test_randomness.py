from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gnothi.contracts import Step
from gnothi.randomness import generator, number, seeded


def test_numbers_are_the_same_in_every_process_and_version() -> None:
    """Fixed by value: a change would make old runs impossible to repeat."""
    code = "from gnothi.randomness import number; print(number(3, 'crops', 7, 2))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "12"})
    assert int(other.stdout) == number(3, "crops", 7, 2) == 8779435189294841290


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["a", "b", "a b"]), st.integers(0, 99)), unique=True, min_size=2, max_size=30))
def test_different_arguments_give_different_numbers(keys: list[tuple[int, str, int]]) -> None:
    assert len({number(*key) for key in keys}) == len(keys)


def test_arguments_do_not_run_together() -> None:
    assert len({number(1, "x", 23), number(12, "x", 3), number(1, "x", 2, 3), number(1, "x 2", 3)}) == 4


def test_a_generator_leaves_the_global_one_alone_and_repeats_itself() -> None:
    before = torch.get_rng_state()
    first, again = (torch.rand(4, generator=generator(0, "crops", 5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(4, generator=generator(0, "crops", 6)))
    assert torch.equal(torch.get_rng_state(), before)


def test_inside_seeded_the_global_generator_is_set_and_outside_untouched() -> None:
    before = torch.get_rng_state()
    with seeded(0, "init", 1):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    with seeded(0, "init", 1):
        assert torch.equal(torch.rand(3), first)


def test_the_global_generator_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="inside"), seeded(0, "init"):
        torch.rand(1)
        raise ValueError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_s_random_numbers_depend_on_its_number_and_seed_only() -> None:
    def draw(step: Step) -> float:
        return torch.rand(1, generator=step.generator("masks", 1)).item()

    assert draw(Step(0, 4, 10)) == draw(Step(0, 4, 20))
    assert len({draw(Step(seed, i, 10)) for seed in range(3) for i in range(4)}) == 12


def test_integers_of_any_type_give_the_same_number() -> None:
    assert number(3, "x", 5) == number(np.int64(3), "x", np.int32(5)) and number(0, "x", 1) == number(0, "x", True)
