"""ExPLoRA: parameter-efficient extended pre-training of vision transformers for new domains.

Importing the package does nothing but define its version; import the sub-packages for the rest.
"""

__version__ = '0.1.0'
