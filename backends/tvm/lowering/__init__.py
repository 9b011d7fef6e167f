"""From IR to plan: one rule per operator, then fusion of elementwise programs."""
