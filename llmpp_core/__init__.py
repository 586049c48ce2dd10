"""LLM performance predictors for architecture search: the methods.

``from llmpp_core import SearchSpace, LLMPredictor, EvolutionarySearch`` and so on; `__init__.pyi` lists the names. Importing the package
loads none of them, and each name loads only what it needs. What is not listed is imported from its room, such as `llmpp_core.space.genes`.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
