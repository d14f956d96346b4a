"""From plans to the distinct kernel and collective calls they need.

A million plans share a few hundred layer shapes: each part of a layer is lowered once per distinct
combination of the plan columns it depends on, priced once, and gathered back onto the plans.
"""
