"""No call that runs what it reads: no pickle in any dress, no eval, no shell. By the syntax tree, not by the text."""

import ast
from collections.abc import Iterator

import pytest
from meta.test_tree import ROOT, tracked

UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
RUNNING = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
ARRAY_READERS = {"np.load", "numpy.load"}
TORCH_READERS = {"torch.load", "torch.jit.load", "torch.hub.load"}
TORCH_OBJECTS = {"broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"}
"""What torch.distributed sends as pickles."""
YAML_READERS = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the reason of each dangerous import or call."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names if name.name.split(".")[0] in UNPICKLING)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNPICKLING:
                yield node.lineno, module
            case ast.Call():
                if reason := _danger_of(node):
                    yield node.lineno, reason
            case _:
                pass


def _danger_of(call: ast.Call) -> str:
    name = ast.unparse(call.func)
    given = {one.arg: ast.unparse(one.value) for one in call.keywords if one.arg}
    if name in RUNNING | YAML_READERS or name.split(".")[-1] in TORCH_OBJECTS:
        return name
    if name in TORCH_READERS and given.get("weights_only") != "True":
        return f"{name} without weights_only=True"
    if name in ARRAY_READERS and given.get("allow_pickle") != "False":
        return f"{name} without allow_pickle=False"
    if given.get("shell", "False") != "False":
        return f"{name} with a shell"
    return ""


def test_the_program_unpickles_and_evaluates_nothing() -> None:
    paths = tracked("shared/*.py", "services/*.py", "migrations/*.py", "benchmarks/*.py")
    assert paths
    found = [(path, line, reason) for path in paths for line, reason in dangers(ast.parse(path.read_text()))]
    assert [f"{path.relative_to(ROOT)}:{line}: {reason}" for path, line, reason in found] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
        "distributed.broadcast_object_list(found)",
    ],
)
def test_the_check_sees_each_of_them(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_the_check_lets_the_safe_ones_pass() -> None:
    safe = "np.load(p, allow_pickle=False); torch.load(p, weights_only=True); yaml.safe_load(t); model.eval()"
    assert not list(dangers(ast.parse(safe)))
