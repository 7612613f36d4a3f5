"""A third backend in a package of its own: the array API standard, and a linear classifier."""
