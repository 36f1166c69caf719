"""Finding the wrong annotations of a data set by a detector that was trained on it, or before that
by a backbone; and by localisers, which are trained for it.

annotations + who judges -> evidence -> suspicions -> audit -> files and a page (-> decisions)
"""
