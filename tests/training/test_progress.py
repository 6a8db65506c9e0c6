"""What a person reads while a run goes on."""

from __future__ import annotations

import io

from gnothi.training.progress import Lines, summary

RATE = {"images_per_second": 54.2, "waiting": 0.1}


def test_one_term_is_the_loss_by_its_name() -> None:
    assert summary({"terms": {"simclr": 5.3781}, **RATE}) == "loss 5.378 (simclr), 54 images/s, 10% waiting for data"


def test_several_terms_are_parts_of_the_loss() -> None:
    found = summary({"terms": {"simclr": 4.1, "rotation": 1.3}, **RATE, "knn": 0.58})
    assert found == "loss simclr 4.1, rotation 1.3, 54 images/s, 10% waiting for data, k-NN 0.580"


def test_what_was_not_measured_is_not_said() -> None:
    assert summary({}) == "" and summary({"images_per_second": 54.2, "waiting": 0.001}) == "54 images/s"


def test_a_line_says_step_loss_and_time_left() -> None:
    stream = io.StringIO()
    lines = Lines(400, stream=stream)
    lines.update(0)
    assert stream.getvalue() == ""
    lines.update(400, {"terms": {"byol": 0.25}})
    lines.update(400)
    assert stream.getvalue() == "step 400/400, loss 0.25 (byol), 0 s left\n"
