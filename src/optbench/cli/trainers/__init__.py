"""Translate trainings between optbench and other trainers: import, export, folders of images.

`tables/NAME.csv` lists every option of a trainer; a module of its name says what several options
mean together. `formats` tells whose file it is, `imported` holds what all importers share.
"""
