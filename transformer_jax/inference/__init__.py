"""What a trained run can do: continue and classify texts, show attention weights, be probed."""
