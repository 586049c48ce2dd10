"""LLM performance predictors for architecture search: the thin module under the book.

The module holds the methods, the notebooks hold the experiments. Import the file you need, for example
``from llmpp_core.space.architecture import HAT_WMT``; importing the package itself loads nothing heavy.
"""

__version__ = "0.1.0"
