"""Real data sets by name: of the hub at a pinned revision, of a package, or in a folder in official form.

A room each for `images`, `questions`, `captions`, `lidar`, `texts` and `crossed`; `files` is what they share.
"""
