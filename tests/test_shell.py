import subprocess

import pytest

from swn_d2.shell import duration, join_words

WORDS = [
    "plain",
    "two words",
    "",
    "('cats_train',)",
    "[0.5, 1]",
    "it's",
    'a "word"',
    "both ' and \"",
    "$HOME '",
    "`true` '",
    "back\\slash '",
    "new\nline '",
    "!x '",
    "*",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_shell_reads_what_was_meant(word):
    command = join_words(["printf", "%s|", word, "end"])
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stdout == f"{word}|end|"


def test_tuples_look_as_in_the_docs():
    words = ["train_net.py", "DATASETS.TRAIN", "('cats_train',)", "SEED", "1"]
    assert join_words(words) == "train_net.py DATASETS.TRAIN \"('cats_train',)\" SEED 1"


@pytest.mark.parametrize(
    "seconds, text", [(40.4, "40 s"), (99, "99 s"), (150, "2 min"), (11100, "3 h 5 min")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text
