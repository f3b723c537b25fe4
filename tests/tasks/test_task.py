import numpy as np

from nanograd_llm.tasks import Score
from nanograd_llm.tasks.task import TextTask
from nanograd_llm.training import TrainConfig


def test_the_metrics_of_a_score_say_which_numbers_are_percentages_and_the_figure_can_be_read_back():
    score = Score("exact match", 99.12, {"word accuracy": 99.8, "loss": 0.01}, percent=("exact match", "word accuracy"))
    metrics = score.metrics()
    assert metrics == {"exact_match_percent": 99.12, "held_out_word_accuracy_percent": 99.8, "held_out_loss": 0.01}
    assert Score.figure_of(metrics) == "exact match 99.1 %"
    assert Score.figure_of(Score("bits per byte", 1.25).metrics()) == "1.250 bits per byte"


def test_a_task_learns_from_every_row_once_before_it_learns_from_one_again_and_each_time_in_another_order():
    task = object.__new__(TextTask)
    task.training = TrainConfig(batch_size=4, steps=10)
    drawn = np.concatenate([task.drawn(step, 10) for step in range(5)])  # (20,): two epochs of ten rows
    first, second = drawn[:10].tolist(), drawn[10:].tolist()
    assert sorted(first) == sorted(second) == [*range(10)] and first != second
    assert task.drawn(2, 10).tolist() == drawn[8:12].tolist()  # whatever was drawn before
    assert sorted(task.drawn(0, 6, each=3).tolist()) == sorted([*range(6)] * 2)
