"""Path patching: what one component tells another along direct paths, and circuits put to test."""

from mlp_interp.paths.path_patch import path_patch as path_patch
