from nanograd_llm.tasks import Score


def test_the_metrics_of_a_score_say_which_numbers_are_percentages_and_the_figure_can_be_read_back():
    score = Score("exact match", 99.12, {"word accuracy": 99.8, "loss": 0.01}, percent=("exact match", "word accuracy"))
    metrics = score.metrics()
    assert metrics == {"exact_match_percent": 99.12, "held_out_word_accuracy_percent": 99.8, "held_out_loss": 0.01}
    assert Score.figure_of(metrics) == "exact match 99.1 %"
    assert Score.figure_of(Score("bits per byte", 1.25).metrics()) == "1.250 bits per byte"
