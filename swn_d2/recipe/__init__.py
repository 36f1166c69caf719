"""A config for data of one's own: what the data are like, the numbers that fit, and the file.

The imports go one way: ``facts``, ``choices``, ``text``, ``project``.
"""

from .project import NewProject, plan_project

__all__ = ["NewProject", "plan_project"]
