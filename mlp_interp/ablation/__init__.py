"""What is lost when a component is taken away: from the logits, and from all that follows."""

from mlp_interp.ablation.direct import ablate_direct as ablate_direct
from mlp_interp.ablation.groups import Groups as Groups
from mlp_interp.ablation.importance import ablate_ranges as ablate_ranges
from mlp_interp.ablation.importance import subupdate_importance as subupdate_importance
from mlp_interp.ablation.total import ablate_total as ablate_total
