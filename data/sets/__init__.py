"""Real data sets by name: of the hub at a pinned revision, of a package, or in a folder in official form.

A room each for `images`, `questions`, `captions`, `clips`, `medical`, `lidar`, `texts`, `crossed`,
`dialogues` and `visual_safety`; `files` is what they share.
"""
