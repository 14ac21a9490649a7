"""The package is what the notebooks export, is cheap to import, and can be built and installed."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

import dattri

GENERATED = sorted(path.relative_to(ROOT) for path in (ROOT / "dattri").rglob("*.py"))


def command(name):
    """A console script of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def run(*arguments, cwd=ROOT):
    """Run a command; its output, or the test fails with its errors."""
    result = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def tracked_copy(tmp_path_factory):
    """What git would commit, in an empty folder."""
    copy = tmp_path_factory.mktemp("copy")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def test_modules_are_what_the_notebooks_export(tracked_copy, tmp_path):
    copy = tmp_path / "dattri"
    shutil.copytree(tracked_copy, copy, symlinks=True)
    for name in GENERATED:
        (copy / name).unlink()
    run(command("nbdev_export"), cwd=copy)
    assert sorted(path.relative_to(copy) for path in (copy / "dattri").rglob("*.py")) == GENERATED
    for name in GENERATED:
        assert (copy / name).read_text() == (ROOT / name).read_text(), f"{name} differs: run nbdev_export"


def test_notebooks_are_clean(tracked_copy, tmp_path):
    copy = tmp_path / "dattri"
    shutil.copytree(tracked_copy, copy, symlinks=True)
    run(command("nbdev_clean"), cwd=copy)
    for notebook in sorted((copy / "nbs").rglob("*.ipynb")):
        name = notebook.relative_to(copy)
        assert notebook.read_text() == (ROOT / name).read_text(), f"{name} is not clean: run nbdev_clean"


def test_notebooks_have_their_outputs_and_no_errors():
    for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        has_code = any(cell["cell_type"] == "code" for cell in cells)
        assert outputs or not has_code, f"{notebook.name} was committed without outputs"
        assert not any(output["output_type"] == "error" for output in outputs), notebook.name


def test_an_exported_cell_has_one_public_symbol():
    """Pages list the symbols of a cell in reverse, and an example belongs to one of them."""
    for module in GENERATED:
        for cell in (ROOT / module).read_text().split("\n# %% "):
            symbols = re.findall(r"^(?:def|class) ([A-Za-z]\w*)", cell, re.MULTILINE)
            assert len(symbols) <= 1, f"{module}: give {', '.join(symbols)} a cell each"


@pytest.mark.parametrize("module", [path for path in GENERATED if path.name != "_docs.py"], ids=str)
def test_private_names_stay_in_their_module(module):
    imports = [node for node in ast.walk(ast.parse((ROOT / module).read_text())) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if node.level or (node.module or "").startswith("dattri")]
    assert not [name.name for node in own for name in node.names if re.match("_[^_]", name.name)]


@pytest.mark.parametrize("module", GENERATED, ids=str)
def test_metrics_are_compared_by_name_in_their_registries_alone(module):
    """Elsewhere their records are asked: a metric more is one more record."""
    compared = [node for node in ast.walk(ast.parse((ROOT / module).read_text())) if isinstance(node, ast.Compare)]
    named = {part.value for node in compared for part in ast.walk(node) if isinstance(part, ast.Constant)}
    assert named.isdisjoint({"lds", "loo", "mislabel"}) or module.name in ("kinds.py", "metrics.py")


def test_import_costs_little():
    """No torch before it is needed; the time is measured by perf/, here only its cause."""
    code = "import sys, dattri; print(sorted({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).strip() == "[]"
    code = "import sys, dattri.cli; print('torch' in sys.modules)"
    assert run(sys.executable, "-c", code).strip() == "False"


@pytest.mark.wheel
def test_wheel_made_from_the_sdist_holds_the_package_and_nothing_else(tracked_copy, tmp_path):
    copy = tmp_path / "dattri"
    shutil.copytree(tracked_copy, copy, symlinks=True)
    run(sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path), ".", cwd=copy)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {path.as_posix() for path in GENERATED}
    assert "dattri/py.typed" in names and any(name.endswith("entry_points.txt") for name in names)
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "nbdev" not in "".join(re.findall(r"Requires-Dist: (?!.*extra).*\n", text))
    with tarfile.open(sdist) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert tops == {
        "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "dattri", "dattri.egg-info",
        "pyproject.toml", "settings.ini", "setup.cfg", "setup.py",
    }  # fmt: skip


def test_one_version_everywhere():
    """settings.ini, the package, CITATION.cff and the newest heading of CHANGELOG.md."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    version = parser["DEFAULT"]["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert dattri.__version__ == headings[0] == cited == version


def test_workflows_run_what_setup_declares():
    """Every Python version of the classifiers is tested, and all files of .github are YAML."""
    files = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github").rglob("*.yml")}
    tested = files["test.yml"]["jobs"]["newest"]["strategy"]["matrix"]["python"]
    declared = re.search(r'for version in \(([^)]*)\)', (ROOT / "setup.py").read_text())[1]
    assert tested == [version for version in re.findall(r'"([^"]*)"', declared) if "." in version]
    assert {"dependabot.yml", "docs.yml", "bug_report.yml", "feature_request.yml"} < set(files)


@pytest.mark.parametrize(("page", "file"), [("how_it_works", "ARCHITECTURE"), ("changelog", "CHANGELOG")])
def test_pages_show_their_file(page, file):
    """The committed output of the page is the text of the file below its title: else run the notebook again."""
    cells = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text())["cells"]
    (output,) = cells[-1]["outputs"]
    text = (ROOT / f"{file}.md").read_text()
    assert "".join(output["data"]["text/markdown"]) == text.partition("\n")[2].strip()


def test_constraints_pin_every_requirement():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    for key in ("requirements", "text_requirements", "music_requirements", "dev_requirements"):
        for line in filter(None, parser["DEFAULT"][key].split()):
            assert re.split(r"[=<>\[]", line)[0].lower().replace("_", "-") in pinned, line


def test_what_builds_the_package_is_installed_for_its_test():
    """The test of the wheel builds without isolation, so [dev] requires what pyproject.toml does."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert set(needed) <= set(parser["DEFAULT"]["dev_requirements"].split())


def test_readme_is_the_index_notebook():
    """README.md holds every code block and heading of nbs/index.ipynb, in order."""
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    readme = (ROOT / "README.md").read_text()
    parts = re.findall(r"```sh\n([\s\S]*?)```|^#+ (.*)$", text, re.MULTILINE)
    place = 0
    for code, heading in parts:
        start = readme.find((code or heading).strip(), place)
        assert start >= 0, f"README.md lacks {code or heading!r}: run nbdev_readme"
        place = start
    assert sum(bool(code) for code, _ in parts) >= 2
    shown = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for code in shown:
        assert code.startswith("#|") or code.strip() in readme, f"README.md lacks {code!r}: run nbdev_readme"


def readme_blocks():
    """Code and what README says that it prints, in order."""
    text = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"^``` python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    shown = re.findall(r"^```\n\n((?: {4}.*\n)+)", text, re.MULTILINE)
    return code, [line.strip() for block in shown for line in block.splitlines()]


def test_readme_prints_what_it_shows_when_pasted_as_a_script(fork_server, tmp_path, monkeypatch):
    code, shown = readme_blocks()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fork_server.run(code, cwd=tmp_path).splitlines() == shown
    assert len(shown) == code.count("print(") >= 3


RUNS_CODE = r"(pickle|joblib|dill|marshal|shelve)\.(loads?|open|Unpickler)|cloudpickle\.loads?|eval|exec"
UNPICKLERS = {"benchmark/datasets.py": "_ArraysOnly", "benchmark/music.py": "_NumbersOnly"}


def dotted(node):
    """The dotted name of a function that is called, as far as it is one."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@pytest.mark.parametrize("file", sorted((ROOT / "dattri").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_loaded_that_could_run_code(file):
    """What README says of loading: every reader that could run code is one of those it names."""
    tree, name = ast.parse(file.read_text()), file.relative_to(ROOT / "dattri").as_posix()
    run_code = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases):
            assert UNPICKLERS.get(name) == node.name
            assert any(getattr(part, "name", "") == "find_class" for part in node.body)
        if not isinstance(node, ast.Call):
            continue
        called, options = dotted(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
        if called == "torch.load":
            assert options["weights_only"] == "True"
        elif called == "np.load":
            assert options["allow_pickle"] == "False"
        elif called == "yaml.load":
            assert [ast.unparse(part) for part in node.args[1:]] == ["_Loader"]
        elif re.fullmatch(RUNS_CODE, called):
            run_code.append(called)
        assert options.get("trust_remote_code", "False") == "False"
    assert run_code == (["cloudpickle.loads"] if name == "model_util/parallel.py" else [])


TESTS = sorted((ROOT / "tests").glob("*.py"))


def imported(tree):
    """Names of the modules that code imports, in strings of code for other processes and by `importorskip` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in {"importorskip", "import_module"}:
            yield from (part.value for part in node.args if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^[ \t]*(?:import|from)[ \t]+(\w+)", node.value, re.MULTILINE)


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_no_test_module_is_imported(file):
    """What several test modules need is in conftest.py or in a module of helpers."""
    modules = {name for text in imported(ast.parse(file.read_text())) for name in text.split(".")}
    assert sorted(name for name in modules if name.startswith("test_")) == []


def test_no_local_paths():
    """Nothing that is committed names a folder of somebody's machine."""
    places = (r"root/", r"home/\w+/", r"Users/\w+/", r"(?:[\w.-]+/)+(?:site-packages/|dattri/\w+/\w+\.py:\d)")
    local = re.compile(rf"(?<![\w.-])/(?:{'|'.join(places)})")
    names = [name for name in run("git", "ls-files", "-z").split("\0") if (ROOT / name).is_file()]
    assert [name for name in names if local.search(read(ROOT / name))] == []


def read(path):
    """Text of a file, empty for binary ones."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def test_the_sidebar_leads_to_each_page_once():
    listed = re.findall(r"[\w/]+\.ipynb", (ROOT / "nbs" / "sidebar.yml").read_text())
    pages = [str(path.relative_to(ROOT / "nbs")) for path in (ROOT / "nbs").rglob("*.ipynb")]
    assert sorted(listed) == sorted(pages)


def shown_code(notebook):
    """The lines of code that the site shows: of cells that are not hidden, and of fenced blocks in prose."""
    lines = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = "".join(re.findall(r"^```.*\n([\s\S]*?)^```", source, re.MULTILINE))
        elif re.search(r"^#\| *(hide\b|echo: *false)", source, re.MULTILINE):
            continue
        lines += [line for line in source.splitlines() if not line.startswith("#|")]
    return lines


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_lines_of_notebooks_fit_the_screen(notebook):
    """As ruff counts: what a comment says to a checker is not part of a line. The site cuts off code after 96."""
    text = "\n".join("".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"])
    assert not [line for line in text.splitlines() if len(re.sub(r"\s*# (noqa|type:).*", "", line)) > 120]
    if notebook.parent.name == "tutorials" or notebook == ROOT / "nbs" / "index.ipynb":
        assert not [line for line in shown_code(notebook) if len(line) > 96]


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_imports_are_in_cells_of_their_own(notebook):
    """The docs build runs each cell with an import in it, and nothing else that is not exported."""
    cells = json.loads(notebook.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    if not any("#| export" in source for source in sources):
        return  # nothing is documented, so nothing is run
    for source in sources:
        if source.startswith("%%") or "#| export" in source:
            continue
        kinds = {isinstance(statement, ast.Import | ast.ImportFrom) for statement in ast.parse(source).body}
        assert len(kinds) <= 1, source


@pytest.mark.parametrize("module", GENERATED, ids=str)
def test_the_summary_of_a_module_is_a_whole_sentence(module):
    """Of a quote of two lines, only the first would become the module's docstring."""
    summary = ast.get_docstring(ast.parse((ROOT / module).read_text()))
    assert summary is None or summary[-1] in ".?!`", summary


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_names_that_are_linked_by_the_docs_are_not_linked_twice(notebook):
    """The docs build turns `name` into a link, and a link in a link is shown as its source."""
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert not re.findall(r"\[`[\w.]+`\]\([^)]*\)", text)


@cache
def pages():
    """The pages of the site by path, with the anchors of their headings and symbols."""
    found = {}
    for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
        path = notebook.relative_to(ROOT / "nbs").with_suffix(".html")
        cells = json.loads(notebook.read_text())["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w.-]", "", heading.lower().replace(" ", "-")) for heading in headings}
        found[path.with_name(re.sub(r"^\d+_", "", path.name)).as_posix()] = anchors | symbols_in(text)
    return found


def symbols_in(text):
    """Names of functions and classes, which are anchors, in lower case too."""
    names = {name for name in re.findall(r"^ *(?:def|class) (\w+)", text, re.MULTILINE)}
    return names | {name.lower() for name in names}


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_links_between_pages_lead_somewhere(notebook):
    """As they are on the site, where the names of pages have lost the numbers of their notebooks."""
    known, folder = pages(), notebook.parent.relative_to(ROOT / "nbs")
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    own = r"(?:https://trais-lab\.github\.io/dattri/)?"
    for target in re.findall(rf"\]\(\s*({own}[\w./-]+\.html(?:#[\w.-]+)?)\)", text):
        path, _, anchor = target.removeprefix("https://trais-lab.github.io/dattri/").partition("#")
        base = Path() if target.startswith("https") else folder
        page = Path(os.path.normpath(base / path)).as_posix()
        assert page in known, f"{target}: no such page"
        assert not anchor or anchor in known[page], f"{target}: no such heading"


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_pictures_say_what_they_show(notebook):
    """Each picture of the site has an alt text, for those who cannot see it."""
    for cell in json.loads(notebook.read_text())["cells"]:
        source, outputs = "".join(cell["source"]), cell.get("outputs", [])
        if any("image/png" in output.get("data", {}) for output in outputs) and "#| hide" not in source:
            assert re.search(r"^#\| fig-alt: .+$", source, re.MULTILINE), source
