"""Configuration of the documentation, built by `sphinx-build -W docs docs/_build/html`."""

import torchgeo_explora

project = 'torchgeo-explora'
author = 'The torchgeo-explora developers'
copyright = '2026, The torchgeo-explora developers'
version = release = torchgeo_explora.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
exclude_patterns = ['_build']
nitpicky = False

autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_format = 'short'
napoleon_numpy_docstring = False

myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3

html_theme = 'furo'
html_title = 'torchgeo-explora'
