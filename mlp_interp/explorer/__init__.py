"""Looking around in one prompt by hand: click on what adds to a prediction and see what it is."""

from mlp_interp.explorer._explore import Explorer as Explorer
from mlp_interp.explorer._explore import explore as explore
