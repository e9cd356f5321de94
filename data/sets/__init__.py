"""Real data sets by name: of the hub at a pinned revision, or in a local folder in their official form.

A room each for `images`, `questions`, `captions` and `lidar`; `files` is what they share.
"""
