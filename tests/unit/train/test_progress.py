"""Progress through a file."""

from txpert_dist.train.progress import ProgressFile, followed


def test_every_line_arrives_once_in_order_and_the_last_of_a_stage_always(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_text("left by an earlier start\n")
    heard = []
    with followed(path, lambda *line: heard.append(line)):
        write = ProgressFile(path)
        for done in range(1, 1001):
            write("train", done, 1000)
        write("validate", 1, 1)
    assert heard[0] == ("train", 1, 1000)
    assert heard[-2:] == [("train", 1000, 1000), ("validate", 1, 1)]
    assert heard == sorted(set(heard), key=heard.index)
    assert len(heard) < 100


def test_half_a_line_waits_for_its_other_half(tmp_path):
    path = tmp_path / "progress.jsonl"
    heard = []
    with followed(path, lambda *line: heard.append(line)):
        with path.open("a") as file:
            file.write('["a", 1, 2]\n["b", 1')
        with path.open("a") as file:
            file.write(', 2]\n["never ended", 1')
    assert heard == [("a", 1, 2), ("b", 1, 2)]
