"""What `benchmarks/house.py` counts, on sources whose numbers are known."""

import ast

import pytest
from conftest import load_script


@pytest.fixture
def house():
    return load_script("house", "benchmarks")


def test_shared_lines(house, tmp_path):
    """Assert the share of the shorter script, whatever the indentation, blank lines and order."""
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("import a\n\n    x = 1\ny = 2\n)\n")  # 4 lines, of which 3 are shared
    other.write_text(")\nx = 1\n\n\nimport a\nz = 3\nz = 4\n")
    assert house.shared_lines(one, other) == house.shared_lines(other, one) == 0.75


def test_functions_are_measured_without_decorators(house, tmp_path):
    """Assert the lines from `def` to the last statement, of methods and inner functions too."""
    source = (
        "@cache\ndef f(\n    a\n):\n    def g():\n        pass\n    return a\n\n\nclass C:\n    def h(self): pass\n"
    )
    (tmp_path / "x.py").write_text(source)
    assert sorted(house.functions(tmp_path / "x.py")) == [(1, "x.py: h"), (2, "x.py: g"), (6, "x.py: f")]


def test_every_argument_of_the_call_is_counted(house, monkeypatch):
    """Assert that starred and keyword-only arguments count, `self` does not, and an underscore hides none."""
    call = ast.parse("def __call__(self, a, b=1, *args, c, _d=None, **kwargs):\n    return a\n").body[0]
    monkeypatch.setattr(house, "call_function", lambda: call)
    found = {measure: value for measure, value, *_ in house.measures() if "`__call__`" in measure}
    assert found == {"arguments of `__call__`": 6, "hidden arguments of `__call__`": 1, "lines of `__call__`": 2}


def test_a_limit_exceeded_is_said_and_ends_with_1(house, monkeypatch, capsys):
    """Assert one line with the value, the limit and the place, and exit code 0 where nothing is above a limit."""
    monkeypatch.setattr(house, "contract_breaches", lambda graph: [])
    rows = [("longest file", 450, 450, "a.py"), ("longest function", 99, None, "f")]
    monkeypatch.setattr(house, "measures", lambda: iter(rows))
    assert house.main() == 0
    assert "nothing broken" in capsys.readouterr().out
    rows.append(("lines of x", 91, 90, "x.py"))
    assert house.main() == 1
    assert "- lines of x: 91, at most 90 is accepted (x.py)" in capsys.readouterr().out
    monkeypatch.setattr(house, "contract_breaches", lambda graph: ["a imports b"])
    assert house.main() == 1
    assert capsys.readouterr().out.count("\n- ") == 2


def test_the_house_is_in_order(house, capsys):
    """Assert that nothing in the repository is above a limit or against the import contract."""
    assert house.main() == 0, capsys.readouterr().out
