"""From an analysis to a plan: by ratio, by a limit on the loss, or for a draft."""
