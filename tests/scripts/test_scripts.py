"""The shell scripts on a fake machine: each failure prints a sentence, and nothing is installed twice.

The fake `python` answers the probe, makes a virtual environment of one file, and notes the arguments of pip, ruff,
mypy and pytest. The lock and the stamp run on the real interpreter.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM_TOOLS = [
    "awk",
    "bash",
    "cat",
    "chmod",
    "cp",
    "dirname",
    "grep",
    "head",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "sleep",
]
FAKE_PYTHON = """#!/bin/bash
case "$*" in
  *probe_python.py) echo '{probe}' ;;
  '-m venv '*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo made >>"$NOTES" ;;
  '-m pip '*)
    sleep "${{PIP_S:-0}}"
    echo "$*" >>"$NOTES"
    printf '#!/bin/bash\\nprintf "tfspark:%%s;" "$@" >>"$NOTES"\\n' >"${{0%/*}}/tfspark"
    chmod +x "${{0%/*}}/tfspark"
    [ -z "${{PIP_FAILS:-}}" ] || {{ echo 'no matching distribution' >&2; exit 1; }}
    ;;
  -m*)
    echo "$*" >>"$NOTES"
    [ "$2" != "${{FAILING:-}}" ] || exit 3
    [ "$2" != pytest ] || echo '1 passed'
    ;;
  *) exec '{real}' "$@" ;;
esac
"""


class Machine:
    """A fake machine with a copy of the scripts. Its PATH has only the directory ``bin``.

    Attributes:
        root: the repository on the machine; its path has a space.
        env: environment of the scripts that `run` starts.
    """

    def __init__(self, directory):
        self.root = directory / "my repository"
        self.bin = directory / "bin"
        self.notes_file = directory / "notes"
        shutil.copytree(REPOSITORY / "scripts", self.root / "scripts")
        shutil.copytree(REPOSITORY / ".ci", self.root / ".ci")
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.bin.mkdir()
        self.notes_file.touch()
        for tool in SYSTEM_TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.env = {"PATH": str(self.bin), "NOTES": str(self.notes_file), "HOME": str(directory)}
        self.add("df", "echo header; echo 'disk 0 0 99999999 0% /'")
        self.add("uname", "[ $1 = -s ] && echo Linux || echo x86_64")
        self.add_java("17.0.15")
        self.add_python("python3", "3.12.3 64 venv")

    def add(self, name, code):
        return write_program(self.bin / name, f"#!/bin/bash\n{code}\n")

    def add_java(self, version, directory=None):
        code = f"#!/bin/bash\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n"
        return write_program((directory or self.bin) / "java", code)

    def add_python(self, name, probe):
        return write_program(self.bin / name, FAKE_PYTHON.format(probe=probe, real=sys.executable))

    def start(self, script, *args, **env):
        return subprocess.Popen(
            [self.root / script, *args],
            env={**self.env, **env},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script, *args, **env):
        process = self.start(script, *args, **env)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(script, process.returncode, out, err)

    def notes(self):
        return self.notes_file.read_text().splitlines()

    def installs(self):
        return [line.rpartition("my repository")[2] for line in self.notes() if "pip install" in line]


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def assert_refused(result, sentence, *hints):
    assert result.returncode == 1, result
    assert sentence in result.stderr.splitlines()[0]
    for hint in hints:
        assert hint in result.stderr
    assert "Traceback" not in result.stderr


PYTEST = "-m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder"
PYTHON_SENTENCE = "tfspark setup: expected Python 3.11 to 3.13, which TensorFlow has wheels for; "


@pytest.mark.parametrize(
    ("probe", "found"),
    [
        ("3.9.2 64 venv", "python3 3.9.2 (too old)."),
        ("2.7.18 64 no-venv", "python3 2.7.18 (too old)."),
        ("3.14.0 64 venv", "python3 3.14.0 (too new for TensorFlow)."),
        ("3.12.3 32 venv", "python3 3.12.3 (32 bits, not 64)."),
        (
            "3.11.2 64 no-venv",
            "python3 3.11.2 (without the venv module: sudo apt-get install python3.11-venv).",
        ),
    ],
)
def test_setup_when_python_is_unsuitable_says_which_was_found(machine, probe, found):
    machine.add_python("python3", probe)

    result = machine.run("scripts/setup")

    assert_refused(result, PYTHON_SENTENCE, found, "apt-get install python3", "brew install python@3.13")
    assert not (machine.root / ".venv").exists()


def test_setup_when_there_is_no_python_says_so(machine):
    (machine.bin / "python3").unlink()

    assert_refused(machine.run("scripts/setup"), PYTHON_SENTENCE + "found python3, which is not there.")


def test_setup_when_the_named_python_does_not_exist_takes_no_other(machine):
    result = machine.run("scripts/setup", TFSPARK_PYTHON="/no/such python")

    assert_refused(result, PYTHON_SENTENCE + "found /no/such python, which is not there.")


def test_setup_when_several_pythons_are_unsuitable_names_them_all(machine):
    machine.add("python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    machine.add_python("python3", "3.10.1 64 venv")

    result = machine.run("scripts/setup")

    assert_refused(result, "found python3.13, which does not start, python3 3.10.1 (too old).")


def test_setup_when_the_newest_python_does_not_start_takes_the_next(machine):
    machine.add("python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    machine.add_python("python3.12", "3.12.1 64 venv")

    result = machine.run("scripts/setup")

    assert result.returncode == 0, result
    assert f"making .venv with {machine.bin / 'python3.12'}" in result.stderr


@pytest.mark.parametrize(("version", "major"), [("1.8.0_392", 8), ("11.0.22", 11), ("16", 16)])
def test_setup_when_java_is_old_says_which_was_found(machine, version, major):
    java = machine.add_java(version)

    result = machine.run("scripts/setup")

    assert_refused(
        result,
        f"tfspark setup: expected Java 17 or newer; found {major} ({java}).",
        "sudo apt-get install openjdk-17-jre-headless",
        "brew install openjdk@17",
    )


@pytest.mark.parametrize("version", ["17", "21.0.1", "25-ea"])
def test_setup_when_java_is_new_enough_succeeds(machine, version):
    machine.add_java(version)

    assert machine.run("scripts/setup").returncode == 0


def test_setup_when_java_prints_its_options_first_finds_the_version(machine):
    machine.add(
        "java", "echo 'Picked up JAVA_TOOL_OPTIONS: -Xmx1g' >&2; echo 'java version \"21.0.1\" 2023' >&2"
    )

    assert machine.run("scripts/setup").returncode == 0


def test_setup_when_there_is_no_java_says_so(machine):
    (machine.bin / "java").unlink()

    assert_refused(machine.run("scripts/setup"), "found no java on PATH and JAVA_HOME is not set.")


def test_setup_when_java_fails_repeats_what_it_printed(machine):
    machine.add("java", "echo 'Unable to locate a Java Runtime.' >&2; exit 1")

    assert_refused(
        machine.run("scripts/setup"), "java -version failed and printed: Unable to locate a Java Runtime."
    )


def test_setup_when_java_home_is_wrong_does_not_take_the_java_on_path(machine):
    result = machine.run("scripts/setup", JAVA_HOME="/nowhere")

    assert_refused(result, "found JAVA_HOME=/nowhere, which holds no bin/java.", "or unset it")


def test_setup_when_java_home_has_a_space_uses_it(machine, tmp_path):
    machine.add_java("1.8.0_392")
    machine.add_java("17.0.1", tmp_path / "a jdk" / "bin")

    assert machine.run("scripts/setup", JAVA_HOME=str(tmp_path / "a jdk")).returncode == 0


def test_setup_when_the_disk_is_full_says_how_much_is_there(machine):
    machine.add("df", "echo header; echo 'disk 0 0 2097152 99% /'")

    result = machine.run("scripts/setup")

    assert_refused(
        result, f"expected 5 GB of free disk for the first setup; found 2048 MB at {machine.root}."
    )
    assert not (machine.root / ".venv").exists()


def test_setup_when_the_disk_is_full_after_the_first_setup_succeeds(machine):
    machine.run("scripts/setup")
    machine.add("df", "echo header; echo 'disk 0 0 1 99% /'")
    (machine.root / "pyproject.toml").write_text("[project]\nname = 'changed'\n")

    assert machine.run("scripts/setup").returncode == 0
    assert len(machine.installs()) == 2


def test_setup_when_the_platform_has_no_tensorflow_says_so(machine):
    machine.add("uname", "[ $1 = -s ] && echo Darwin || echo x86_64")

    assert_refused(machine.run("scripts/setup"), "or macOS on Apple silicon; found Darwin x86_64.")


@pytest.mark.parametrize("args", [["--deb"], ["dev"]])
def test_setup_when_an_option_is_unknown_prints_the_usage(machine, args):
    result = machine.run("scripts/setup", *args)

    assert result.returncode == 2
    assert "Usage: scripts/setup [--dev]" in result.stderr
    assert machine.notes() == []


def test_setup_a_second_time_does_nothing(machine):
    machine.run("scripts/setup")
    result = machine.run("scripts/setup")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert machine.notes().count("made") == 1
    assert machine.installs() == [""]


@pytest.mark.parametrize(
    ("first", "second", "expected", "why"),
    [
        ([], ["--dev"], ["", "[dev]"], "the tests need more"),
        (["--dev"], [], ["[dev]"], "the extra includes all that a run needs"),
        (["--dev"], ["--dev"], ["[dev]"], "nothing changed"),
    ],
)
def test_setup_when_the_extra_differs_installs_what_is_missing(machine, first, second, expected, why):
    machine.run("scripts/setup", *first)
    machine.run("scripts/setup", *second)

    assert machine.installs() == expected, why


def test_setup_when_pyproject_changed_installs_again_with_the_same_extra(machine):
    machine.run("scripts/setup", "--dev")
    (machine.root / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    machine.run("scripts/setup")

    assert machine.installs() == ["[dev]", "[dev]"]
    assert machine.notes().count("made") == 1


def test_setup_when_the_repository_was_moved_makes_a_new_environment(machine):
    machine.run("scripts/setup")
    elsewhere = machine.root.parent / "elsewhere"
    machine.root = machine.root.rename(elsewhere)
    machine.run("scripts/setup")

    assert machine.notes().count("made") == 2


def test_setup_when_pip_fails_says_so_and_starts_over_the_next_time(machine):
    result = machine.run("scripts/setup", PIP_FAILS="1")

    assert result.returncode == 1
    assert "no matching distribution" in result.stderr
    assert "tfspark setup: expected pip to install tfspark; it failed, and says why above." in result.stderr

    assert machine.run("scripts/setup").returncode == 0
    assert machine.notes().count("made") == 2


def test_setup_when_killed_in_the_middle_starts_over_the_next_time(machine):
    process = machine.start("scripts/setup", PIP_S="60")
    assert any("installing" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)

    assert machine.run("scripts/setup").returncode == 0
    assert machine.notes().count("made") == 2


def test_setup_when_the_python_of_the_environment_is_missing_makes_a_new_one(machine):
    machine.run("scripts/setup")
    (machine.root / ".venv/bin/python").unlink()
    machine.run("scripts/setup")

    assert machine.notes().count("made") == 2


def test_setup_when_there_is_an_environment_that_works_keeps_it(machine):
    subprocess.run(
        [machine.bin / "python3", "-m", "venv", machine.root / ".venv"], env=machine.env, check=True
    )
    machine.run("scripts/setup")

    assert machine.notes().count("made") == 1
    assert machine.installs() == [""]


def test_setup_twice_at_the_same_time_installs_once(machine):
    processes = [machine.start("scripts/setup", PIP_S="0.5") for _ in range(3)]
    ends = [(process.communicate(timeout=30)[1], process.returncode) for process in processes]

    assert [code for _, code in ends] == [0, 0, 0]
    assert machine.installs() == [""]
    assert sum("waiting for another setup" in err for err, _ in ends) == 2


def test_run_hands_its_arguments_to_tfspark(machine):
    result = machine.run("scripts/run", "configs/a b.yaml", "--set", "train.epochs=1")

    assert result.returncode == 0, result
    assert machine.notes()[-1] == "tfspark:run;tfspark:configs/a b.yaml;tfspark:--set;tfspark:train.epochs=1;"


def test_run_without_a_configuration_prints_the_usage(machine):
    result = machine.run("scripts/run")

    assert result.returncode == 2
    assert "Usage: scripts/run CONFIG" in result.stderr
    assert machine.notes() == []


@pytest.mark.parametrize("script", ["scripts/test", ".ci/run"])
def test_test_checks_everything_and_prints_pytests_last_line_last(machine, script):
    result = machine.run(script, "-k", "a b")

    assert result.returncode == 0, result
    assert result.stdout.splitlines()[-1] == "1 passed"
    assert machine.installs() == ["[dev]"]
    assert machine.notes()[2:] == [
        "-m ruff check --quiet .",
        "-m ruff format --check --quiet .",
        "-m mypy --no-error-summary",
        f"{PYTEST} -k a b",
    ]


def test_test_with_all_runs_the_slow_tests_too(machine):
    machine.run("scripts/test", "--all", "tests/x.py")

    assert machine.notes()[-1] == f"{PYTEST} -m  tests/x.py"


@pytest.mark.parametrize(("failing", "runs"), [("ruff", 1), ("mypy", 3), ("pytest", 4)])
def test_test_when_a_check_fails_ends_with_its_code(machine, failing, runs):
    result = machine.run("scripts/test", FAILING=failing)

    assert result.returncode == 3
    assert len(machine.notes()[2:]) == runs


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/run", "scripts/test"])
def test_help_prints_the_usage_and_installs_nothing(machine, script):
    result = machine.run(script, "--help")

    assert (result.returncode, result.stderr) == (0, "")
    assert f"Usage: {script}" in result.stdout
    assert machine.notes() == []


def test_scripts_can_be_executed():
    scripts = [REPOSITORY / name for name in ("scripts/setup", "scripts/run", "scripts/test", ".ci/run")]

    assert all(os.access(script, os.X_OK) for script in scripts)
