"""Path patching: what one component tells another along direct paths, and circuits put to test."""

from mlp_interp.paths._path_patch import path_patch as path_patch
from mlp_interp.paths.hypothesis import test_hypothesis as test_hypothesis
