import pickle

from ds_stage2ab.config.problems import Place, Problem, as_block, as_error, in_reading_order


def problem(line: int, *, column: int = 1, file: str = "a.yaml", path=("x", "y")) -> Problem:
    return Problem(path, "must be 1, got 2", "write 1", Place(file, line, column))


def test_a_block_has_place_key_reason_and_remedy():
    assert as_block(problem(3, column=5)) == "a.yaml:3:5: x.y\n  must be 1, got 2\n  fix: write 1"


def test_a_problem_of_the_whole_file_names_no_key():
    assert as_block(problem(1, path=())).splitlines()[0] == "a.yaml:1:1"
    assert str(as_error([problem(1, path=())], "a.yaml")).startswith("a.yaml:1:1: must be 1")


def test_reading_order_is_file_line_column():
    expected = [problem(2), problem(10), problem(10, column=4), problem(1, file="b.yaml")]
    assert in_reading_order(expected[::-1]) == expected


def test_the_error_survives_the_way_between_ranks():
    error = as_error([problem(1), problem(2)], "a.yaml")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
