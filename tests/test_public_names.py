"""What the package offers. A new public name is a decision: it is made here."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
from helpers import ROOT

import dattri

FRONT_DOOR = [
    "retrain_loo", "retrain_lds", "retrain_subsets", "EnsembleTrainer", "SingleModelTrainer",
    "calculate_loo_ground_truth", "calculate_lds_ground_truth", "calculate_targets", "GroundTruth", "Targets",
    "EnsembleTarget", "lds", "loo_corr", "Predictions", "lds_interval", "compare_lds", "compare_targets",
    "loo_interval", "compare_loo", "mislabel_interval", "compare_mislabel", "lds_ceiling", "ceiling_share", "plan_lds",
    "plan_comparison",
    "removal_test", "brittleness",
    "mislabel_detection_auc", "retrieval_metrics", "class_share", "top_overlap", "detection_curve", "judge",
    "read_scores", "read_ground_truth", "check_orientation",
    "load_benchmark", "samples_of", "list_benchmarks", "find_setting", "register_setting", "Setting", "build_benchmark",
    "publish_benchmark", "Datasets", "digits", "influence_function", "trak", "tracin",
    "gradient_dot", "gradient_cosine", "evaluate", "publish_scores", "leaderboard_from", "flip_label", "SubsetSampler",
]  # fmt: skip
MODULES = {
    "dattri": FRONT_DOOR,
    "dattri._docs": ["NumpyRenderer"],  # of the docs build alone
    "dattri.benchmark.baselines": [
        "DampingChoice", "bm25", "choose_damping", "gradient_cosine", "gradient_dot", "influence_function",
        "representation_similarity", "tracin", "trak",
    ],
    "dattri.benchmark.build": ["BuildError", "build_benchmark", "retrain_setting"],
    "dattri.benchmark.datamodel": ["Datamodel", "linear_datamodel"],
    "dattri.benchmark.datasets": ["Datasets", "cifar2", "digits", "maestro", "mnist", "shakespeare", "wikitext2"],
    "dattri.benchmark.hub": ["publish_benchmark"],
    "dattri.benchmark.leaderboard": ["Leaderboard", "LeaderboardRow", "evaluate"],
    "dattri.benchmark.load": ["list_benchmarks", "load_benchmark", "load_setting", "samples_of"],
    "dattri.benchmark.models.gpt2": ["gpt2"],
    "dattri.benchmark.models.linear": ["LogisticRegression", "MLP"],
    "dattri.benchmark.models.music_transformer": ["MusicTransformer"],
    "dattri.benchmark.models.nanogpt": ["NanoGPT"],
    "dattri.benchmark.models.resnet": ["ResNet9"],
    "dattri.benchmark.settings": ["Setting", "find_setting", "list_benchmarks", "register_setting"],
    "dattri.benchmark.sharing": ["Publication", "SharedLeaderboard", "leaderboard_from", "publish_scores"],
    "dattri.benchmark.training": [
        "SingleModelTrainer", "block_loss", "cosine", "decay_matrices", "last_token_loss", "next_token_loss",
    ],
    "dattri.benchmark.noise": [
        "Copies", "PlantCheck", "Planted", "Shortcut", "add_duplicates", "add_feature_noise", "flip_by_matrix",
        "plant_check", "plant_shortcut",
    ],
    "dattri.benchmark.utils": [
        "SubsetSampler", "add_duplicates", "add_feature_noise", "flip_by_matrix", "flip_label", "plant_check",
        "plant_shortcut",
    ],
    "dattri.demo": ["DemoResult", "run_demo"],
    "dattri.plot": [
        "detection", "distribution", "flips", "methods", "predicted_actual", "removal", "roc", "top_samples",
    ],
    "dattri.metric": [
        "Ceiling", "Comparison", "ConfidenceInterval", "Correlation", "GroundTruth", "MislabelDetection",
        "Predictions", "RocCurve", "Targets", "brittleness", "calculate_lds_ground_truth",
        "calculate_loo_ground_truth", "calculate_targets", "ceiling_share", "class_share", "compare_lds",
        "compare_loo", "compare_mislabel", "compare_targets", "detection_curve", "lds", "lds_ceiling", "lds_interval",
        "loo_corr", "loo_interval", "mislabel_detection_auc", "mislabel_interval", "plan_comparison", "plan_lds",
        "removal_test",
        "retrieval_metrics", "top_overlap",
    ],
    "dattri.metric.ceiling": [
        "Ceiling", "ComparisonPlan", "ComparisonPlanRow", "PlanRow", "RetrainingPlan", "ceiling_share", "lds_ceiling",
        "plan_comparison", "plan_lds",
    ],
    "dattri.metric.correlation": ["Correlation", "Predictions", "lds", "loo_corr"],
    "dattri.metric.evaluation": ["EvaluatesMany"],
    "dattri.metric.files": ["read_ground_truth", "read_scores"],
    "dattri.metric.ground_truth": [
        "GroundTruth", "Targets", "calculate_lds_ground_truth", "calculate_loo_ground_truth", "calculate_targets",
    ],
    "dattri.metric.mislabel": ["MislabelDetection", "RocCurve", "mislabel_detection_auc"],
    "dattri.metric.removal": ["Brittleness", "RemovalRow", "RemovalTest", "brittleness", "removal_test"],
    "dattri.metric.retrieval": [
        "ClassShare", "DetectionCurve", "Retrieval", "TopOverlap", "class_share", "detection_curve",
        "retrieval_metrics", "top_overlap",
    ],
    "dattri.metric.orientation": ["check_orientation"],
    "dattri.metric.report": ["Report", "judge"],
    "dattri.metric.uncertainty": [
        "Comparison", "ConfidenceInterval", "compare_lds", "compare_loo", "compare_mislabel", "compare_targets",
        "lds_interval", "loo_interval", "mislabel_interval",
    ],
    "dattri.model_util.ensemble": ["EnsembleTrainer"],
    "dattri.model_util.retrain": ["RetrainError", "TrainsMany", "retrain_lds", "retrain_loo", "retrain_subsets"],
    "dattri.model_util.target": ["EnsembleTarget"],
}  # fmt: skip
EVERY = ["dattri", *(module.name for module in pkgutil.walk_packages(dattri.__path__, "dattri."))]


@pytest.mark.parametrize("name", [name for name in EVERY if name != "dattri._modidx"])
def test_public_names(name):
    public = getattr(importlib.import_module(name), "__all__", [])
    assert sorted(public) == sorted(MODULES.get(name, [])), "list the name above if users need it; else make it private"


@pytest.mark.parametrize("name", FRONT_DOOR)
def test_help_has_the_first_line_of_each_docstring(name):
    assert f"\n{name}\n    {inspect.getdoc(getattr(dattri, name)).splitlines()[0]}" in dattri.__doc__


def test_editors_know_the_names_too():
    source = (ROOT / "dattri" / "__init__.py").read_text()
    imports = re.findall(r"^    from dattri\.\S+ import (.+)$", source, re.MULTILINE)
    assert sorted(", ".join(imports).split(", ")) == sorted(FRONT_DOOR)


def test_the_front_door_is_listed_before_anything_is_loaded():
    code = """
import sys, dattri
listed = dir(dattri)
assert "torch" not in sys.modules and "numpy" not in sys.modules
print(*listed)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {*FRONT_DOOR, "plot", "__version__"} <= {*shown}
    with pytest.raises(AttributeError, match=r"no attribute 'retrain_ldss'.*it offers retrain_loo"):
        dattri.retrain_ldss  # noqa: B018


def test_tutorials_and_readme_import_from_the_front_door():
    pages = [*(ROOT / "nbs" / "tutorials").glob("*.ipynb"), ROOT / "README.md"]
    for page in pages:
        for module, names in re.findall(r"from (dattri[\w.]+) import ([\w, ]+)", page.read_text()):
            for name in names.split(", "):
                assert name not in FRONT_DOOR, f"{page.name}: import {name} from dattri"
                assert name in MODULES.get(module, []), f"{page.name}: {module}.{name} is private"
