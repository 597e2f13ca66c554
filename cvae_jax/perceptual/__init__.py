"""Metrics that compare features of pretrained networks: LPIPS and FVD. The networks are an optional extra."""
