from ds_stage2ab.config.problems import ArgumentPlace, Place, Problem, in_reading_order


def problem(line: int, *, column: int = 1, file: str = "a.yaml", path=("x", "y")) -> Problem:
    return Problem(path, "must be 1, got 2", "write 1", Place(file, line, column))


def test_reading_order_is_file_line_column():
    expected = [problem(2), problem(10), problem(10, column=4), problem(1, file="b.yaml")]
    assert in_reading_order(expected[::-1]) == expected


def test_a_place_is_written_as_editors_read_it_and_an_argument_as_it_was_given():
    assert str(Place("a.yaml", 3, 5)) == "a.yaml:3:5"
    assert Place("a.yaml", 3, 5).spot == "a.yaml:3"
    assert str(ArgumentPlace("x.y=[1, 2]", 1, 6)) == "--set x.y=[1, 2] (column 6)"
    assert ArgumentPlace("x.y=2", 1, 5).spot == str(ArgumentPlace("x.y=2", 1, 5)) == "--set x.y=2"
